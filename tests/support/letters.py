"""An environment for tests of the machinery: any text counts for something, and the machinery can be made to fail.

The more often a response has the letter "e", the better, so that even random weights earn different outcomes. `trouble`
names what goes wrong, once in all processes together where `marker` (a file) does not exist yet:

- `engine`: the sampler of the process raises at its next step, as if it had run out of memory;
- `hang`: a user never answers;
- `stall`: the sampler of the process never returns from its next step;
- `data`: the user of every third training context raises DataError, always (no marker);
- `some`: about every third user does, whatever its context (no marker);
- `away`: all but about every third user raise EngineError until the marker exists.

The user's record of which turn mattered is what each response earned.
"""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from mtrl_envs.base import Context, Environment, Outcome, Reply, User
from mtrl_ray.dialogue.conversation import Role, StopReason
from mtrl_ray.errors import DataError, EngineError

ENOUGH = 4
"""Letters in one response that count in full."""


class Letters(Environment):
    """See the module's docstring."""

    name = "letters"
    max_turns = 3
    warm_start: ClassVar[dict[str, float]] = {"expert": 0.4, "greedy": 0.3, "random": 0.3}

    def __init__(self, trouble: str = "", marker: str = "") -> None:
        self._trouble, self._marker = trouble, marker

    def context(self, split: str, index: int) -> Context:
        return Context(f"{split}-{index}", split, index, "Write letters.")

    def user(self, context: Context, seed: int) -> User:
        if self._trouble == "data" and context.split == "train" and context.index % 3 == 0:
            return _Misinformed(seed)
        if self._trouble == "some" and context.split == "train" and random.Random(f"some/{seed}").random() < 1 / 3:
            return _Misinformed(seed)
        if self._trouble == "away":
            away = context.split == "train" and random.Random(f"away/{seed}").random() > 1 / 3
            return _Away(seed) if away and not Path(self._marker).exists() else _Reader(seed)
        return _Troubled(seed, self._trouble, Path(self._marker)) if self._marker else _Reader(seed)

    def agent(self, name: str, seed: int) -> "_Writer":
        return _Writer({"expert": "eeee", "greedy": "ee", "random": "x"}[name])

    def well_formed(self, response: str) -> bool:
        return True


class Silent(Letters):
    """Whose users cannot be drawn anew."""

    def user(self, context: Context, seed: int) -> User:
        return _Once(seed)


class _Writer:
    def __init__(self, text: str) -> None:
        self._text = text

    def respond(self, history: Sequence[tuple[Role, str]]) -> str:
        return self._text


class _Reader(User):
    def __init__(self, seed: int) -> None:
        self._patience = random.Random(seed).choice((1, 2, 3))
        self._earned: list[float] = []

    def opening(self) -> str:
        return "Go on."

    def reply(self, response: str) -> Reply:
        self._earned.append(min(response.count("e"), ENOUGH) / ENOUGH)
        over = len(self._earned) >= self._patience
        return Reply("And?", reward=self._earned[-1], stop=StopReason.OUTCOME if over else None)

    def redraw(self, seed: int) -> None:
        pass

    def outcome(self) -> Outcome:
        gains = {f"gain_{turn}": earned for turn, earned in enumerate(self._earned)}
        return Outcome(sum(self._earned) / len(self._earned), {"turns": float(len(self._earned)), **gains})


class _Troubled(_Reader):
    def __init__(self, seed: int, trouble: str, marker: Path) -> None:
        super().__init__(seed)
        self._trouble, self._marker = trouble, marker

    def reply(self, response: str) -> Reply:
        if not self._marker.exists():
            self._marker.touch()
            if self._trouble == "hang":
                time.sleep(600)
                return super().reply(response)
            _break_engine(stall=self._trouble == "stall")
        return super().reply(response)


class _Once(_Reader):
    redraw = User.redraw


class _Misinformed(_Reader):
    def reply(self, response: str) -> Reply:
        raise DataError("the reader's file is torn")


class _Away(_Reader):
    def reply(self, response: str) -> Reply:
        raise EngineError("the reader does not answer")


def _break_engine(stall: bool) -> None:
    from mtrl_ray.rollout.huggingface_engine import HuggingFaceEngine

    def step(self: object) -> list[object]:
        if stall:
            time.sleep(600)
        raise RuntimeError("no memory left")

    HuggingFaceEngine.step = step  # type: ignore[method-assign]
