"""Scripted agents of the tasks with hidden facts (`mtrl_envs.scripted.telling`). They see what the policy sees.

1. `expert` asks for each unknown fact, in random order. If it knows all, or in its last turn, it gives its final answer.
2. `greedy` gives its final answer at once and guesses unknown facts.
3. `random` asks a random question or gives an unrelated final answer.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mtrl_envs.base import Probe
from mtrl_ray.dialogue.conversation import Role

GREETINGS = ("Hello, nice to meet you.", "Hi, welcome.")

Known = Mapping[str, Any]
"""Known facts by topic, including those of the request."""


class AskingAgent(ABC):
    """A scripted agent: `expert`, `greedy` or `random`; KeyError for another name."""

    topics: ClassVar[tuple[str, ...]]
    """Topics of the questions."""
    turns: ClassVar[int]
    """Agent turns of a conversation."""

    def __init__(self, name: str, key: str) -> None:
        self._move = {"expert": self._expert, "greedy": self._greedy, "random": self._random}[name]
        self.rng = random.Random(f"{key}/{name}")

    @abstractmethod
    def read(self, messages: Sequence[str]) -> Known:
        """Facts in the user's messages; a later message corrects an earlier one."""

    @abstractmethod
    def question(self, topic: str, known: Known) -> str:
        """A question about a topic."""

    @abstractmethod
    def answer(self, known: Known) -> str:
        """The final answer, with guesses for unknown facts."""

    @abstractmethod
    def nonsense(self) -> str:
        """A final answer that ignores the conversation."""

    def probe(self, history: Sequence[tuple[Role, str]], wrong: Mapping[str, Mapping[Any, Any]]) -> Probe | None:
        """If the user has told all and got no answer yet: the final answer, and the one to another value of one fact.

        wrong: by topic, another value for each value of the fact; the first topic whose answer differs is taken.
        """
        messages = [text for role, text in history if role == Role.USER]
        known = self.read(messages)
        if any(topic not in known for topic in self.topics) or not self._just_told(messages):
            return None
        right = self._repeatable(known)
        answers = (self._repeatable({**known, topic: other[known[topic]]}) for topic, other in wrong.items())
        return next((Probe(right, answer) for answer in answers if answer != right), None)

    def _just_told(self, messages: Sequence[str]) -> bool:
        """Whether the last message completed the facts, so that the agent has not answered yet with all of them known."""
        before = self.read(messages[:-1]) if len(messages) > 1 else {}
        return any(topic not in before for topic in self.topics)

    def _repeatable(self, known: Known) -> str:
        self.rng.seed(0)
        return self.answer(known)

    def respond(self, history: Sequence[tuple[Role, str]]) -> str:
        """The next response."""
        known = self.read([text for role, text in history if role == Role.USER])
        taken = sum(role == Role.AGENT for role, _ in history)
        return self._move(known, taken)

    def _expert(self, known: Known, taken: int) -> str:
        missing = [topic for topic in self.topics if topic not in known]
        if missing and taken < self.turns - 1:
            return self.question(self.rng.choice(missing), known)
        return self.answer(known)

    def _greedy(self, known: Known, _taken: int) -> str:
        return self.answer(known)

    def _random(self, known: Known, _taken: int) -> str:
        move = self.rng.choice([*self.topics, "answer", "answer", "greet"])
        if move == "greet":
            return self.rng.choice(GREETINGS)
        return self.nonsense() if move == "answer" else self.question(move, known)
