"""REFUEL's regression: the difference of two answers' log-ratios is fitted to that of their returns (2410.04612).

With y, y' two answers in one state s, G, G' the returns of their continuations, π_t the policy that sampled all of it, and η:

    loss = mean over pairs of  ( [log π(y|s)/π_t(y|s) - log π(y'|s)/π_t(y'|s)] / η  -  (G - G') )²

Its minimum is π ∝ π_t exp(η Q): the log-ratio is Q up to a constant of the state, so no critic is needed, and no clip. log π
is of the whole answer, summed over its tokens; what was said later is in G alone. Returns of one continuation are noise around
Q. Regression averages them over the pairs of a step and over steps; a single pair is fitted as far as the steps lead.

The loss is of pairs, so a step first evaluates its minibatch, then trains Σ log π · derivative, which is linear in the
outputs: a pair may be spread over micro-batches and processes. Both its answers are always in the same minibatch.
"""

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor

from mtrl_ray.errors import DataError
from mtrl_ray.learner.compute.core import Core, LossFunction, Outputs, means, run_epochs
from mtrl_ray.learner.compute.models import POLICY
from mtrl_ray.learner.methods.step_size import bounded
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.packing import Rows, response_tokens
from mtrl_ray.learner.rows.tables import Dialogues, Responses, Tables
from mtrl_ray.learner.sections import Fit
from mtrl_ray.models.policy import ForwardOptions


@dataclass(frozen=True)
class _Pairs:
    """Answers 2k and 2k + 1 are pair k. `old`: log π_t, float32 [tokens]; `response`: which answer a token belongs to, int64
    [tokens]; `gaps`: G - G', float64 [pairs]."""

    rows: Rows
    old: np.ndarray
    response: np.ndarray
    gaps: np.ndarray


class RefuelUpdate(Fit, Operation[None], learning_rate=5e-4):
    """Steps on the policy's regression on differences of returns.

    run: conversations; responses, the two answers of a pair one after the other, in one state; returns, float32 [responses].
    Numbers: means over the steps of `loss`, `log_ratio` (mean size of an answer's log-ratio, nats), `gradient_norm`; `skipped`;
    `explained`, the part of the squared differences of returns that the last pass explained; `score` and `score_deviation`
    of the returns, `gap_deviation` (root mean square of G - G'), `pairs`, `truncated` (share of the answers that ended at the
    token limit), `policy_steps`, `trained_tokens`, `seconds`, `tokens_per_second`; and `kl_update` of `step_size.bounded`.
    """

    doing: ClassVar[str] = "improving the policy"

    eta: float = Field(2.0, gt=0)
    """η, nats of log-ratio per unit of the return: how far one iteration moves the policy."""

    def run(self, core: Core, conversations: Tables, responses: Tables, returns: np.ndarray) -> tuple[None, Numbers]:
        """See the class."""
        started = time.perf_counter()
        dialogues = Dialogues.read(conversations)
        answers = Responses.read(responses, dialogues)
        pairs = _read(core, dialogues, answers, np.asarray(returns, dtype=np.float64))
        if not len(pairs.gaps):
            return None, {"pairs": 0.0, "policy_steps": 0.0, "trained_tokens": 0.0}

        def step(selection: np.ndarray) -> Numbers:
            loss = refuel_loss(core, pairs, selection, self.eta)
            return core.update(POLICY, pairs.rows, selection, loss, self.step, ForwardOptions(core.temperature))

        generator, old = core.generator("refuel"), core.tensor(pairs.old)
        with bounded(core, pairs.rows, old, old.new_ones(len(old)), None, generator) as moved:
            history = run_epochs(pairs.rows, generator, self, step)
        seconds, tokens = time.perf_counter() - started, float(len(answers.tokens) * self.epochs)
        last = history[-(len(history) // self.epochs) :]
        square = float(np.square(pairs.gaps).mean())
        return None, means(history) | {
            "explained": 1.0 - means(last)["loss"] / square if square > 0 else 0.0,
            "kl_update": moved["kl_update"],
            "score": float(np.mean(returns)),
            "score_deviation": float(np.std(returns)),
            "gap_deviation": square**0.5,
            "pairs": float(len(pairs.gaps)),
            "truncated": float(answers.truncated.mean()),
            "policy_steps": float(len(history)),
            "trained_tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
        }


def _read(core: Core, dialogues: Dialogues, answers: Responses, returns: np.ndarray) -> _Pairs:
    """The pairs, and what the sampling policy says of them, before the first step."""
    if len(returns) != len(answers) or not np.isfinite(returns).all():
        raise DataError(f"{len(answers)} responses need as many finite returns; {len(returns)} were given")
    if len(answers) % 2 or (answers.turn[::2] != answers.turn[1::2]).any():
        raise DataError(f"{len(answers)} responses are no pairs; they have to come two by two, each two in one state")
    rows = response_tokens(dialogues, answers, core.branch_tokens)
    old = answers.logprobs
    if not core.references.sampled(answers.versions):
        old = core.evaluate(POLICY, rows, ForwardOptions(core.temperature))["logprobs"]
    response = np.repeat(np.arange(len(answers), dtype=np.int64), answers.lengths)
    return _Pairs(rows, np.array(old), response, returns[::2] - returns[1::2])


def refuel_loss(core: Core, pairs: _Pairs, selection: np.ndarray, eta: float) -> LossFunction:
    """Rule 2: the loss of a minibatch's pairs, linear in the outputs, with the gradient of the squared error."""
    items = pairs.rows.items_of(selection)
    now = core.evaluate(POLICY, pairs.rows, ForwardOptions(core.temperature), selection)["logprobs"]
    change = np.zeros(2 * len(pairs.gaps))
    np.add.at(change, pairs.response[items], now[items].astype(np.float64) - pairs.old[items])
    chosen = np.unique(pairs.response[items] // 2)
    residual = np.zeros(len(pairs.gaps))
    residual[chosen] = (change[::2] - change[1::2])[chosen] / eta - pairs.gaps[chosen]
    per_answer = np.stack([residual, -residual], axis=1).ravel() * 2.0 / (eta * len(chosen))
    slope = core.tensor(per_answer[pairs.response].astype(np.float32))
    constants = {
        "loss": float(np.square(residual).sum() / len(chosen)),
        "log_ratio": float(np.abs(change).sum() / (2 * len(chosen))),
    }
    share = {name: value / len(items) for name, value in constants.items()}

    def loss(outputs: Outputs, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        total = (outputs["logprobs"] * slope[items]).sum()
        return total, {name: total.new_full((), value * len(items)) for name, value in share.items()}

    return loss
