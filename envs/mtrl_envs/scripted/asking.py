"""Scripted agents of the tasks in which a user tells facts when asked (`mtrl_envs.scripted.telling`): they read what the policy
reads.

1. `expert` asks for each fact it does not know, in random order; knowing all, or with its last turn, it gives its final answer.
2. `greedy` gives its final answer at once: what it was not told, it guesses.
3. `random` asks about anything, or gives a final answer that has nothing to do with what was said.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mtrl_ray.dialogue.conversation import Role

GREETINGS = ("Hello, nice to meet you.", "Hi, welcome.")

Known = Mapping[str, Any]
"""What the user's messages told so far, by topic; what the request itself says is in it too."""


class AskingAgent(ABC):
    """A scripted agent: `expert`, `greedy` or `random`; KeyError for another name."""

    topics: ClassVar[tuple[str, ...]]
    """What the user may be asked about."""
    turns: ClassVar[int]
    """Agent turns of a conversation."""

    def __init__(self, name: str, key: str) -> None:
        self._move = {"expert": self._expert, "greedy": self._greedy, "random": self._random}[name]
        self.rng = random.Random(f"{key}/{name}")

    @abstractmethod
    def read(self, messages: Sequence[str]) -> Known:
        """What the user's messages told; a later message corrects an earlier one."""

    @abstractmethod
    def question(self, topic: str, known: Known) -> str:
        """A question about a topic."""

    @abstractmethod
    def answer(self, known: Known) -> str:
        """The final answer, its gaps filled by guesses."""

    @abstractmethod
    def nonsense(self) -> str:
        """A final answer that ignores what was said."""

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
