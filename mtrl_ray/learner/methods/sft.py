"""Supervised fine-tuning on the agent's tokens: the training of a model before reinforcement learning.

The loss of a step is the mean negative log-likelihood over the minibatch's agent tokens. It has its own optimiser, which is
dropped at the end: its moments do not suit policy gradients. The trained policy is the new `initial` reference.
"""

import time
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor

from mtrl_ray.errors import DataError
from mtrl_ray.learner.compute.core import Core, LossFunction, Outputs
from mtrl_ray.learner.compute.optimisation import Optimiser, Step, warmup_cosine
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.minibatches import minibatches
from mtrl_ray.learner.rows.packing import Rows, turn_tokens
from mtrl_ray.learner.rows.tables import Dialogues, Tables
from mtrl_ray.learner.sections import Fit

WEIGHT_DECAY = 0.01
WARMUP = 0.05
"""Share of the steps in which the learning rate rises; a cosine then takes it down to a tenth."""


class SFT(Fit, Operation[None], epochs=1, minibatch_conversations=32, learning_rate=3e-3):
    """Maximum likelihood on the agent's tokens; the learning rate is the largest of the schedule.

    run: conversations. Numbers: `first_loss`, `loss` (mean of the last tenth), `steps`, `skipped`, `trained_tokens`,
    `seconds`, `tokens_per_second`. Raises DataError if no conversation has agent tokens.
    """

    doing: ClassVar[str] = "supervised fine-tuning"

    steps: int | None = Field(None, ge=1)
    """Steps; None: `epochs` passes over the conversations."""
    seconds: float | None = Field(None, gt=0)
    """Wall-clock bound; None: none. A run that it ends is not reproducible to the bit."""

    def run(self, core: Core, conversations: Tables) -> tuple[None, Numbers]:
        """See the class."""
        rows = imitated(conversations)
        steps = self.steps or -(-len(rows) // self.minibatch_conversations) * self.epochs
        training = Supervision(core, rows, self.minibatch_conversations, self.max_gradient_norm)
        for number in range(steps):
            late = self.seconds is not None and training.elapsed > self.seconds
            if self.seconds is not None and core.collective.any(late):
                break
            training.step(self.learning_rate * warmup_cosine((number + 1) / steps, WARMUP))
        training.settle()
        return None, training.numbers()


Lesson = tuple[Rows, np.ndarray, LossFunction]
"""Rows, the numbers of some of them, and the loss of a step on these."""


class Supervision:
    """Supervised steps on the agent's tokens, one minibatch after another, with an optimiser of their own."""

    def __init__(self, core: Core, rows: Rows, size: int, max_norm: float | None) -> None:
        """rows: of `imitated`; size: conversations per step; max_norm: bound of the gradient's norm."""
        self._core, self._rows, self._max_norm = core, rows, max_norm
        self._optimiser = Optimiser(core.models.policy, weight_decay=WEIGHT_DECAY)
        self._passes = _passes(core, rows, size)
        self._started = time.perf_counter()
        self._tokens = self._skipped = 0.0
        self.losses: list[float] = []
        self.other_steps = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._started

    def step(self, learning_rate: float, lessons: Iterator[Lesson] | None = None) -> None:
        """One step on the next minibatch; then one on the next of the lessons, with the same optimiser."""
        selection = next(self._passes)
        count = len(self._rows.items_of(selection))
        self.losses.append(self._step((self._rows, selection, likelihood(count)), learning_rate)["loss"])
        self._tokens += count
        if lessons is not None:
            self._step(next(lessons), learning_rate)
            self.other_steps += 1

    def _step(self, lesson: Lesson, learning_rate: float) -> Numbers:
        core, (rows, selection, loss) = self._core, lesson
        step = Step(learning_rate, self._max_norm)
        statistics = core.descend(core.models.policy, self._optimiser, rows, selection, loss, step)
        self._skipped += statistics["skipped"]
        return statistics

    def settle(self) -> None:
        """Make the trained policy the starting point: drop the references, their copies and the optimiser's moments."""
        core = self._core
        core.references.policy_steps += len(self.losses)
        core.references.forget_initial()
        core.models.forget("prm")
        core.models.reset_optimiser("policy")

    def numbers(self) -> Numbers:
        """The numbers of `SFT`."""
        losses, seconds = self.losses, self.elapsed
        last = losses[-max(1, len(losses) // 10) :]
        return {
            "first_loss": losses[0] if losses else float("nan"),
            "loss": float(np.mean(last)) if last else float("nan"),
            "steps": float(len(losses)),
            "skipped": self._skipped,
            "trained_tokens": self._tokens,
            "seconds": seconds,
            "tokens_per_second": self._tokens / seconds,
        }


def imitated(conversations: Tables) -> Rows:
    """The rows that are trained on. Raises DataError if no conversation has agent tokens."""
    rows = turn_tokens(Dialogues.read(conversations))
    if not len(rows):
        raise DataError("none of the conversations has an agent turn with tokens; there is nothing to imitate")
    return rows


def likelihood(count: int) -> LossFunction:
    """Negative log-likelihood per token, a mean over the minibatch's `count` tokens, in nats."""

    def loss(outputs: Outputs, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        total = -outputs["logprobs"].sum() / count
        return total, {"loss": total}

    return loss


def _passes(core: Core, rows: Rows, size: int) -> Iterator[np.ndarray]:
    """Minibatches of endless passes, each in its own random order."""
    while True:
        yield from minibatches(rows, core.generator("supervise"), size)
