"""A scripted user who knows what the agent needs, and tells it when asked: the users of 2603.23550's tasks.

1. The user holds one fact per topic. Its opening tells few of them or none; a message of the agent brings out one fact,
   however much it asks.
2. With probability `noise` an answer is off. Half of these are vague; half are slips: a wrong fact, which the user takes
   back in its next message if there is one.
3. Asking again for what was told, and messages that make no sense, cost patience; out of patience the user leaves.
4. The agent's final answer ends the conversation, right or wrong. Its grade is the score, and the reward on arrival.
5. The user records which turn mattered. `attainable(told)` is the expected score of the best final answer that can be
   given on what was told. `gain_0`, `gain_1`, … are how much each agent turn brought out: log2 of the factor by which its
   question raised that expectation (that of a slip counts once it is taken back, for the turn that asked). `key_turn` is
   the agent turn, from 0, with the largest gain: the later of equals, -1 where no turn brought out anything.
"""

import math
import random
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mtrl_envs.base import Outcome, Reply, User
from mtrl_ray.dialogue.conversation import GAIN, StopReason

SAYINGS: dict[str, tuple[str, ...]] = {
    "vague": ("Hmm, not sure.", "I do not know right now.", "Let me think."),
    "again": ("As I said.", "I told you."),
    "correction": ("Sorry, I was wrong.", "Wait, that was wrong."),
    "hello": ("Hello.", "Hi."),
    "lost": ("What do you mean?", "I do not understand."),
    "pleased": ("Great, thanks, bye.", "Perfect, bye."),
    "displeased": ("That is not right, bye.", "That is no help, bye."),
    "leave": ("I give up, bye.", "Never mind, bye."),
}
"""What every such user says, whatever the task is."""

PLEASED = 0.8
"""The score from which the user is content with a final answer."""


@dataclass(frozen=True)
class Move:
    """What an agent's response does: topics it asks about, in order of preference, and the final answer it gives."""

    asks: tuple[str, ...] = ()
    answer: str | None = None
    greets: bool = False
    farewell: bool = False
    hostile: bool = False

    @property
    def understood(self) -> bool:
        """Whether it has at least one intent."""
        return bool(self.asks) or self.answer is not None or self.greets or self.farewell or self.hostile


class TellingUser(User):
    """One conversation. `told`: topics of the opening; `patience`: useless messages after which it leaves."""

    def __init__(self, key: str, told: Iterable[str], patience: int, noise: float) -> None:
        self._key = key
        self._noise = noise
        self._patience = patience
        self._turn = -1
        self._opened = tuple(told)
        self._told_at: dict[str, int] = dict.fromkeys(self._opened, -1)
        self._slip: tuple[str, int] | None = None  # topic, and the turn that asked
        self._greeted = False
        self._result: Outcome | None = None
        self.rng = random.Random(f"{key}/opening")

    @abstractmethod
    def request(self) -> str:
        """What the user wants, without any fact."""

    @abstractmethod
    def read(self, response: str) -> Move:
        """The intents of a response."""

    @abstractmethod
    def tell(self, topic: str) -> str:
        """The fact of a topic, in words."""

    @abstractmethod
    def mistake(self, topic: str) -> str:
        """A wrong fact of a topic, in the same words."""

    @abstractmethod
    def grade(self, answer: str) -> Outcome:
        """Score and metrics of a final answer; an empty one is none."""

    @abstractmethod
    def attainable(self, told: frozenset[str]) -> float:
        """The expected score of the best final answer when these topics are known; above 0."""

    def opening(self) -> str:
        """The request, and the facts that it lets through."""
        return " ".join([self.request(), *(self.tell(topic) for topic in self._opened)])

    def reply(self, response: str) -> Reply:
        """Tell what is asked, or take the final answer."""
        self._turn += 1
        self.rng = random.Random(f"{self._key}/{self._turn}")
        move = self.read(response)
        if move.answer is not None:
            self._result = self.grade(move.answer)
            content = self._result.score >= PLEASED
            text = self._say("pleased" if content else "displeased")
            return Reply(text, reward=self._result.score, stop=StopReason.OUTCOME)
        corrected, correction = self._correct()
        if corrected is not None and corrected in move.asks:
            return Reply(correction)
        text = self._respond(move)
        if self._patience <= 0:
            return Reply(self._say("leave"), stop=StopReason.USER_LEFT)
        return Reply(f"{correction} {text}".strip())

    def outcome(self) -> Outcome:
        """The final answer's grade, and the record of which turn mattered."""
        result = self._result or self.grade("")
        return Outcome(result.score, {**result.metrics, **self._record()})

    def _respond(self, move: Move) -> str:
        if move.hostile or move.farewell:
            self._patience -= 3
            return self._say("lost")
        if move.asks:
            return self._inform(move.asks)
        if move.greets and not self._greeted:
            self._greeted = True
            return self._say("hello")
        self._patience -= 1
        return self._say("lost")

    def _inform(self, asks: Sequence[str]) -> str:
        topic = next((topic for topic in asks if topic not in self._told_at), None)
        if topic is None:
            self._patience -= 1
            return f"{self._say('again')} {self.tell(asks[0])}"
        if self.rng.random() < self._noise:
            if self.rng.random() < 0.5:
                return self._say("vague")
            self._slip = topic, self._turn
            return self.mistake(topic)
        self._told_at[topic] = self._turn
        return self.tell(topic)

    def _correct(self) -> tuple[str | None, str]:
        """Take back a slip: its topic, and the words."""
        if self._slip is None:
            return None, ""
        topic, asked = self._slip
        self._slip = None
        self._told_at[topic] = asked
        return topic, f"{self._say('correction')} {self.tell(topic)}"

    def _record(self) -> dict[str, float]:
        """The gain of each agent turn, and the turn with the largest."""
        told = frozenset(topic for topic, turn in self._told_at.items() if turn < 0)
        reached = self.attainable(told)
        gains = []
        for turn in range(self._turn + 1):
            told |= {topic for topic, at in self._told_at.items() if at == turn}
            before, reached = reached, self.attainable(told)
            gains.append(math.log2(reached / before))
        best = max(range(len(gains)), key=lambda turn: (round(gains[turn], 9), turn), default=-1)
        key_turn = best if gains and gains[best] > 1e-9 else -1
        return {"key_turn": float(key_turn), **{GAIN.format(turn): max(0.0, gain) for turn, gain in enumerate(gains)}}

    def _say(self, saying: str) -> str:
        return self.rng.choice(SAYINGS[saying])
