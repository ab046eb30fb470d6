"""Supervised fine-tuning that ends by what the model can do, not by its steps.

Some abilities come late and all at once: the loss hardly falls for hundreds or thousands of steps, until the model has found
out that something the user said decides the answer. When this happens differs between seeds and between machines. Two things
make it come every time:

- *Pairs.* If the environment has pairs of answers of which only the user's words tell which is right (`mtrl_envs.base.Probe`),
  every step on conversations is followed by one on pairs, -log σ(log π(right) - log π(wrong)), until the model tells them
  apart. What decides between two answers is a small part of the likelihood's gradient, and all of this one's.
- *Trials.* The model is tried every `STRETCH` steps on held-out conversations. With pairs the measure is the mean probability
  of the right one of the two; training ends when it reaches `until`, after `LEAST` steps, in which the model learns to
  speak. Without pairs it is the held-out loss; training ends when it has stopped falling.

Conversations of people who do not listen can make a model forget what the pairs taught. If it has, in the end, training goes on
with pairs to the last step.

The learning rate rises, is constant, and falls over the last `DECAY` steps, which begin when the trial is passed or the steps
run out. Such a schedule does not need to know its end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mtrl_ray.learner.compute.core import Core, LossFunction, Outputs
from mtrl_ray.learner.methods.sft import Lesson, Supervision, imitated
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.minibatches import minibatches
from mtrl_ray.learner.rows.packing import Rows, response_tokens
from mtrl_ray.learner.rows.tables import Dialogues, Responses, Tables, starts_of

STRETCH = 100
"""Steps between two trials of the model."""
RISE, DECAY, FLOOR = 60, 150, 0.05
"""Steps in which the learning rate rises at the beginning, and falls at the end; and the share of it that is left."""
LEAST = 800
"""Steps before the last `DECAY`, with pairs; a model of the project needs about as many to say what people say."""
PAIRS = 8
"""Pairs of a step on pairs."""
MAX_NORM = 1.0
"""Bound of the gradient's norm."""
PATIENCE, LEAST_FALL = 4, 0.01
"""The held-out loss has stopped falling if its best of the last PATIENCE trials is not this share below the best before."""


@dataclass(frozen=True)
class WarmStart(Operation[None]):
    """SFT that ends when the model passes a trial on held-out conversations, at `steps` at the latest (`DECAY` included).

    until: probability of the right answers at which the trial is passed. pairs: whether the held-out conversations are pairs
    that differ in their last turn alone, the one with the right answer first.

    run: conversations; held-out conversations; further pairs of the same kind, to learn from, or None. Numbers: those of
    `SFT`; `passed` (1 or 0); with pairs `probe` (mean probability of the right answer at the end) and `pair_steps`, otherwise
    `held_out_loss`. Raises DataError if there is nothing to imitate.
    """

    steps: int
    until: float
    pairs: bool = True
    minibatch_conversations: int = 16
    learning_rate: float = 3e-3

    doing: ClassVar[str] = "warm start"

    def run(
        self, core: Core, conversations: Tables, held_out: Tables, taught: Tables | None = None
    ) -> tuple[None, Numbers]:
        """See the class."""
        training = Supervision(core, imitated(conversations), self.minibatch_conversations, MAX_NORM)
        lessons = None if taught is None else _lessons(core, Contrasts(Dialogues.read(taught)))
        decay = min(DECAY, self.steps // 3)
        longest = self.steps - decay
        trials: list[float] = []
        kept = False
        while True:
            passed = False
            while len(training.losses) < longest and not (passed and len(training.losses) >= self._least):
                rate = self.learning_rate * min(1.0, (len(training.losses) + 1) / RISE)
                training.step(rate, lessons if kept or not passed else None)
                if len(training.losses) % STRETCH == 0:
                    trials.append(self._trial(core, held_out))
                    passed = trials[-1] >= self.until if self.pairs else stopped_falling(trials)
            for left in range(decay, 0, -1):
                training.step(self.learning_rate * max(FLOOR, left / decay), lessons if kept else None)
            last = self._trial(core, held_out)
            if kept or lessons is None or last >= self.until or len(training.losses) + STRETCH + decay > self.steps:
                break
            kept = True
        training.settle()
        numbers = training.numbers()
        if not self.pairs:
            return None, numbers | {"passed": float(passed), "held_out_loss": last}
        return None, numbers | {
            "passed": float(last >= self.until),
            "probe": last,
            "pair_steps": float(training.other_steps),
        }

    @property
    def _least(self) -> int:
        """Steps without which training does not end, even if the trial is passed."""
        return LEAST if self.pairs else 0

    def _trial(self, core: Core, held_out: Tables) -> float:
        return right_answers(core, held_out) if self.pairs else loss(core, held_out)


class Contrasts:
    """Pairs of answers in one state each, as trees: both are branches of what was said before. `rows`; `answer`: int64
    [tokens], the answer of each token; answers 2k and 2k + 1 are pair k, the right one first."""

    def __init__(self, dialogues: Dialogues) -> None:
        """dialogues: two by two, which differ in their last turn alone, the agent's."""
        turns = dialogues.agent_turns
        owner = dialogues.turn_conversation[turns]
        last = np.flatnonzero(np.append(owner[1:] != owner[:-1], True))
        said = Responses.logged(dialogues, sampled=False).take(last)
        answers = replace(said, conversation=said.conversation // 2 * 2, turn=np.repeat(said.turn[::2], 2))
        self.rows: Rows = response_tokens(
            dialogues, answers, branch_tokens=len(answers.tokens)
        )  # a pair stays in one row
        self.answer = np.repeat(np.arange(len(answers), dtype=np.int64), answers.lengths)
        self.starts = starts_of(answers.lengths)

    def loss(self, count: int) -> LossFunction:
        """-log σ(log π(right) - log π(wrong)), in nats, a mean over the minibatch's `count` pairs."""
        answer = torch.from_numpy(self.answer)

        def loss(outputs: Outputs, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            logprobs = outputs["logprobs"]
            of = answer.to(items.device)[items]
            sums = logprobs.new_zeros(len(self.starts) - 1).index_add(0, of, logprobs)
            present = torch.unique(of[of % 2 == 0])
            total = torch.nn.functional.softplus(sums[present + 1] - sums[present]).sum() / count
            return total, {"loss": total}

        return loss


def _lessons(core: Core, contrasts: Contrasts) -> Iterator[Lesson]:
    """Minibatches of pairs, in endless passes."""
    while True:
        for selection in minibatches(contrasts.rows, core.generator("pairs"), PAIRS):
            yield contrasts.rows, selection, contrasts.loss(len(selection))


def right_answers(core: Core, pairs: Tables) -> float:
    """Mean probability of the first of two answers, given that it is one of them (see `WarmStart`)."""
    contrasts = Contrasts(Dialogues.read(pairs))
    logprobs = core.evaluate("policy", contrasts.rows)["logprobs"].astype(np.float64)
    answers = np.add.reduceat(logprobs, contrasts.starts[:-1])
    margin = answers[0::2] - answers[1::2]
    return float(np.mean(1.0 / (1.0 + np.exp(-np.clip(margin, -50.0, 50.0)))))


def loss(core: Core, conversations: Tables) -> float:
    """Mean negative log-likelihood of the agent's tokens, in nats."""
    rows = imitated(conversations)
    return -float(core.evaluate("policy", rows)["logprobs"].mean())


def stopped_falling(losses: list[float]) -> bool:
    """Whether the best of the last `PATIENCE` losses is not `LEAST_FALL` below the best before them."""
    before, recent = losses[:-PATIENCE], losses[-PATIENCE:]
    return bool(before) and min(recent) > (1 - LEAST_FALL) * min(before)
