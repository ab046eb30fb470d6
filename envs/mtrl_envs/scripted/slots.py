"""The option `horizon` of the tasks with hidden facts: as many turns, with one independent thing to find out in each.

1. A conversation has `horizon` agent turns. Before each, the user describes a new task of the environment and leaves out one
   fact, its slot. The next message belongs to the next task, whatever was said: what is lost stays lost.
2. A slot is found if the response asks for the fact that is missing, and for nothing else, and the user answers. With
   probability `noise` it cannot say, and the slot is lost.
3. The outcome is the share of the slots that were found; with `bernoulli` it is 1 with this probability, otherwise 0. It
   arrives with the last turn.
4. `gain_0`, `gain_1`, … are exact: by how much each turn changed the expected outcome if nothing else is found. They are
   1 / horizon or 0, and their sum is the metric `expected`, of which the outcome is `bernoulli`'s draw, or the number itself.
   No turn changes what later turns can find, so nothing else can be a turn's credit.
5. The scripted agents: `expert` asks for what is missing; `greedy` reads only the last fact of a message and asks for one of
   the others; `random` asks anything, or greets. Each turn is independent of the turns before.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mtrl_envs.base import Context, Environment, Outcome, Reply, User
from mtrl_envs.scripted.asking import GREETINGS, AskingAgent
from mtrl_envs.scripted.splits import Profile, draw
from mtrl_envs.scripted.telling import SAYINGS, TellingUser
from mtrl_ray.dialogue.conversation import EXPECTED, GAIN, Role, StopReason
from mtrl_ray.errors import ConfigurationError

MOST_TURNS = 32
NEXT = "Next:"
"""Stands before each task but the first."""
SLOTS = "slots"
"""The key of a context's hidden part that holds its tasks, in order."""
SYSTEM = "Each message leaves out one fact. Ask for it in one question, and for nothing else."


@dataclass(frozen=True)
class Horizon:
    """`turns`: the agent turns of a conversation; `bernoulli`: whether the outcome is drawn."""

    turns: int
    bernoulli: bool

    @classmethod
    def parse(cls, environment: str, horizon: int | None, bernoulli: bool, apart: Sequence[str]) -> "Horizon | None":
        """The options, checked; None without a horizon. `apart`: options in use that a horizon excludes."""
        if horizon is None:
            if bernoulli:
                raise ConfigurationError(
                    f"{environment}: bernoulli is true without a horizon; set horizon: 12, or leave it out"
                )
            return None
        if isinstance(horizon, bool) or not isinstance(horizon, int) or not 1 <= horizon <= MOST_TURNS:
            raise ConfigurationError(
                f"{environment}: horizon is {horizon!r}; it has to be a whole number of turns from 1 to {MOST_TURNS}"
            )
        if not isinstance(bernoulli, bool):
            raise ConfigurationError(f"{environment}: bernoulli is {bernoulli!r}; it has to be true or false")
        if apart:
            raise ConfigurationError(
                f"{environment}: horizon and {apart[0]} exclude one another; leave one of them out"
            )
        return cls(horizon, bernoulli)

    def context(
        self,
        environment: str,
        split: str,
        index: int,
        sample: Callable[[random.Random], Profile],
        topics: Sequence[str],
    ) -> Context:
        """The `index`-th context of a split: `turns` tasks, each told but for one of the topics."""
        rng = random.Random(f"{environment}/{split}/{index}/slots")
        slots = []
        for turn in range(self.turns):
            task = draw(environment, split, index * self.turns + turn, sample)
            slots.append(task | {"told": rng.sample(topics, len(topics) - 1), "patience": 1})
        return Context(f"{split}-{index}", split, index, SYSTEM, {SLOTS: slots})


class HorizonEnvironment(Environment):
    """An environment with the option `horizon`."""

    _horizon: Horizon | None

    @property
    def turn_limit(self) -> int:
        """See `Environment.turn_limit`."""
        return self.max_turns if self._horizon is None else self._horizon.turns


class SlotUser(User):
    """The user of one conversation. `tasks`: a user per slot, who says and reads what belongs to it."""

    def __init__(
        self, key: str, tasks: Sequence[TellingUser], topics: Sequence[str], noise: float, horizon: Horizon
    ) -> None:
        self._key, self._tasks, self._topics, self._noise = key, tasks, topics, noise
        self._bernoulli = horizon.bernoulli
        self._found: list[bool] = []
        self._score: float | None = None

    def opening(self) -> str:
        """The first task."""
        return self._tasks[0].opening()

    def reply(self, response: str) -> Reply:
        """The answer, and the next task."""
        turn = len(self._found)
        said = self._answer(self._tasks[turn], response, random.Random(f"{self._key}/{turn}"))
        if turn + 1 < len(self._tasks):
            return Reply(f"{said} {NEXT} {self._tasks[turn + 1].opening()}")
        return Reply(f"{said} Bye.", reward=self._outcome(), stop=StopReason.OUTCOME)

    def outcome(self) -> Outcome:
        """The share of the slots that were found, or its draw, with the gains of the turns."""
        gains = [found / len(self._tasks) for found in self._found]
        found = [turn for turn, found in enumerate(self._found) if found]
        record = {GAIN.format(turn): gain for turn, gain in enumerate(gains)}
        return Outcome(self._outcome(), {"key_turn": float(max(found, default=-1)), EXPECTED: self._share(), **record})

    def _answer(self, task: TellingUser, response: str, rng: random.Random) -> str:
        missing = next(topic for topic in self._topics if topic not in task.opened)
        move = task.read(response)
        asked = move.asks == (missing,) and move.answer is None
        self._found.append(asked and rng.random() >= self._noise)
        if self._found[-1]:
            return task.tell(missing)
        return rng.choice(SAYINGS["vague" if asked else "lost"])

    def _share(self) -> float:
        return sum(self._found) / len(self._tasks)

    def _outcome(self) -> float:
        if self._score is None:
            share = self._share()
            drawn = random.Random(f"{self._key}/outcome").random() < share
            self._score = float(drawn) if self._bernoulli else share
        return self._score


class SlotAgent:
    """A scripted agent of the option. `asking`: the task's own agent of that name, who reads facts and words questions."""

    def __init__(self, name: str, asking: AskingAgent) -> None:
        self._pick = {"expert": self._expert, "greedy": self._greedy, "random": self._random}[name]
        self._asking = asking

    def respond(self, history: Sequence[tuple[Role, str]]) -> str:
        """The question about the last task."""
        said = next(text for role, text in reversed(history) if role == Role.USER).rpartition(NEXT)[2].strip()
        topic = self._pick(said)
        rng = self._asking.rng
        return rng.choice(GREETINGS) if topic is None else self._asking.question(topic, self._asking.read([said]))

    def _expert(self, said: str) -> str | None:
        return self._unknown(said)

    def _greedy(self, said: str) -> str | None:
        sentences = re.split(r"(?<=[.?!]) ", said)
        return self._unknown(f"{sentences[0]} {sentences[-1]}")

    def _random(self, said: str) -> str | None:
        return self._asking.rng.choice([*self._asking.topics, None])

    def _unknown(self, said: str) -> str:
        known: Any = self._asking.read([said])
        missing = [topic for topic in self._asking.topics if topic not in known]
        return self._asking.rng.choice(missing or self._asking.topics)
