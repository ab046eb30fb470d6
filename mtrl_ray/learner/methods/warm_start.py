"""Supervised fine-tuning that ends by what the model can do, not by its steps.

1. Some abilities come late and all at once: the loss hardly falls for hundreds of steps, until the model has found out that
   the last thing the user said decides the answer. When this happens differs between seeds and between machines.
2. So the model is tried every `STRETCH` steps on held-out conversations. With pairs of answers (`mtrl_envs.base.Probe`) the
   measure is the mean probability of the right one of the two; training ends when it reaches `until`. Without pairs it is
   the held-out loss; training ends when it has stopped falling.
3. The learning rate rises, is constant, and falls over the last `DECAY` steps, which begin when the probe is passed or the
   steps run out. Such a schedule does not need to know its end.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.methods.sft import Supervision, imitated
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.packing import turn_tokens
from mtrl_ray.learner.rows.tables import Dialogues, Tables, starts_of

STRETCH = 100
"""Steps between two trials of the model."""
RISE, DECAY, FLOOR = 60, 150, 0.05
"""Steps in which the learning rate rises at the beginning, and falls at the end; and the share of it that is left."""
MAX_NORM = 1.0
"""Bound of the gradient's norm."""
PATIENCE, LEAST_FALL = 4, 0.01
"""The held-out loss has stopped falling if its best of the last PATIENCE trials is not this share below the best before."""


@dataclass(frozen=True)
class WarmStart(Operation[None]):
    """SFT that ends when the model passes a trial on held-out conversations, at `steps` at the latest (`DECAY` included).

    until: probability of the right answers at which the trial is passed. pairs: whether the held-out conversations are pairs
    that differ in their last turn alone, the one with the right answer first.

    run: conversations; held-out conversations. Numbers: those of `SFT`; `passed` (1 or 0); with pairs `probe`, the mean
    probability of the right answer at the end, otherwise `held_out_loss`. Raises DataError if there is nothing to imitate.
    """

    steps: int
    until: float
    pairs: bool = True
    minibatch_conversations: int = 16
    learning_rate: float = 3e-3

    doing: ClassVar[str] = "warm start"

    def run(self, core: Core, conversations: Tables, held_out: Tables) -> tuple[None, Numbers]:
        """See the class."""
        training = Supervision(core, imitated(conversations), self.minibatch_conversations, MAX_NORM)
        decay = min(DECAY, self.steps // 3)
        trials: list[float] = []
        passed = False
        while not passed and len(training.losses) < self.steps - decay:
            training.step(self.learning_rate * min(1.0, (len(training.losses) + 1) / RISE))
            if len(training.losses) % STRETCH == 0:
                trials.append(self._trial(core, held_out))
                passed = trials[-1] >= self.until if self.pairs else stopped_falling(trials)
        for left in range(decay, 0, -1):
            training.step(self.learning_rate * max(FLOOR, left / decay))
        training.settle()
        last = self._trial(core, held_out)
        passed = last >= self.until if self.pairs else passed
        name = "probe" if self.pairs else "held_out_loss"
        return None, {**training.numbers(), "passed": float(passed), name: last}

    def _trial(self, core: Core, held_out: Tables) -> float:
        return right_answers(core, held_out) if self.pairs else loss(core, held_out)


def right_answers(core: Core, pairs: Tables) -> float:
    """Mean probability of the first of two answers, given that it is one of them (see `WarmStart`)."""
    dialogues = Dialogues.read(pairs)
    rows = turn_tokens(dialogues)
    logprobs = core.passes.evaluate(core.models.policy, rows)["logprobs"].astype(np.float64)
    turns = np.add.reduceat(logprobs, starts_of(dialogues.turn_lengths[dialogues.agent_turns])[:-1])
    owner = dialogues.turn_conversation[dialogues.agent_turns]
    last = turns[np.flatnonzero(np.append(owner[1:] != owner[:-1], True))]
    margin = last[0::2] - last[1::2]
    return float(np.mean(1.0 / (1.0 + np.exp(-np.clip(margin, -50.0, 50.0)))))


def loss(core: Core, conversations: Tables) -> float:
    """Mean negative log-likelihood of the agent's tokens, in nats."""
    rows = imitated(conversations)
    return -float(core.passes.evaluate(core.models.policy, rows)["logprobs"].mean())


def stopped_falling(losses: list[float]) -> bool:
    """Whether the best of the last `PATIENCE` losses is not `LEAST_FALL` below the best before them."""
    before, recent = losses[:-PATIENCE], losses[-PATIENCE:]
    return bool(before) and min(recent) > (1 - LEAST_FALL) * min(before)
