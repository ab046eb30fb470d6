"""A scripted user who has the facts that the agent needs and tells them if asked: the users of the tasks of 2603.23550.

1. The user has one fact per topic. Its opening tells few or none of them. It tells at most one fact per reply, even if
   the agent asks for several.
2. With probability `noise` an answer is vague or wrong, half each. A wrong answer (a slip) is a wrong fact that the user
   corrects in its next message, if there is one.
3. Repeated questions and messages without an intent cost patience. The user leaves when its patience is used up.
4. The agent's final answer ends the conversation. Its grade is the score, and the reward on arrival.
5. The user records which turn mattered. `attainable(told)` is the expected score of the best final answer given the
   told facts. `gain_0`, `gain_1`, … are the information gains of the agent turns: log2 of the factor by which its
   question raised this expectation (a slip counts when it is corrected, for the turn that asked). `key_turn` is
   the agent turn, from 0, with the largest gain: the last one if several are equal, -1 if no turn has a gain.
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
"""Sentences of the user in every task."""

PLEASED = 0.8
"""Minimum score of a final answer that pleases the user."""


@dataclass(frozen=True)
class Move:
    """A parsed response: topics it asks about, in order of preference, and its final answer."""

    asks: tuple[str, ...] = ()
    answer: str | None = None
    greets: bool = False
    farewell: bool = False
    hostile: bool = False

    @property
    def understood(self) -> bool:
        """Whether the message has at least one intent."""
        return bool(self.asks) or self.answer is not None or self.greets or self.farewell or self.hostile


class TellingUser(User):
    """The user of one conversation. `told`: topics of the opening; `patience`: useless messages after which it leaves."""

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

    @property
    def opened(self) -> tuple[str, ...]:
        """Topics that the opening tells."""
        return self._opened

    @abstractmethod
    def request(self) -> str:
        """The user's request, without any fact."""

    @abstractmethod
    def read(self, response: str) -> Move:
        """Parse a response into its intents."""

    @abstractmethod
    def tell(self, topic: str) -> str:
        """A sentence with the fact of a topic."""

    @abstractmethod
    def mistake(self, topic: str) -> str:
        """A sentence with a wrong fact of a topic, phrased like `tell`."""

    @abstractmethod
    def grade(self, answer: str) -> Outcome:
        """Score and metrics of a final answer; an empty string is no answer."""

    @abstractmethod
    def attainable(self, told: frozenset[str]) -> float:
        """The expected score of the best final answer if these topics are known; above 0."""

    def opening(self) -> str:
        """The request, and the facts of the opening."""
        return " ".join([self.request(), *(self.tell(topic) for topic in self._opened)])

    def reply(self, response: str) -> Reply:
        """Answer a question, or grade the final answer."""
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

    def redraw(self, seed: int) -> None:
        """See `User.redraw`."""
        self._key = f"{self._key}/{seed}"

    def outcome(self) -> Outcome:
        """The grade of the final answer, the gains of the turns, and the key turn."""
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
        """Correct a slip. Returns its topic (None if there is none) and the sentence."""
        if self._slip is None:
            return None, ""
        topic, asked = self._slip
        self._slip = None
        self._told_at[topic] = asked
        return topic, f"{self._say('correction')} {self.tell(topic)}"

    def _record(self) -> dict[str, float]:
        """The metrics `gain_0`, `gain_1`, … and `key_turn` (rule 5)."""
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
