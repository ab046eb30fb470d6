"""Policy updates: optimiser steps on the clipped surrogate for any advantages.

`measure` computes once, before the first step, what the steps compare with: log-probabilities of the policy that the update
starts from and of the reference. If every token was sampled by exactly these weights in this precision, the sampler's
log-probabilities are taken. Truncated importance weights correct for tokens that other weights sampled, in the surrogate and
in every KL.

`PolicySteps` takes the steps, minibatch by minibatch. If the policy has then moved by more than `kl_limit`, it goes back along
the straight line to where it started, as far as it has to (`step_size`).

Any rows work: responses in logged states (`improvement`, `single_turn`), or all agent tokens of whole conversations
(`conversations`). Everything per token is flat, float32 [tokens], in the order of the table.
"""

import time
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtrl_ray.learner.compute.core import Core, LossFunction, Outputs, means, run_epochs
from mtrl_ray.learner.methods.step_size import bounded
from mtrl_ray.learner.operation import Numbers
from mtrl_ray.learner.rows.packing import Rows
from mtrl_ray.learner.sections import KL, Fit
from mtrl_ray.models.policy import ForwardOptions
from mtrl_ray.objectives.losses import (
    Surrogate,
    clipped_surrogate,
    kl_estimate,
    reinforce_loss,
    truncated_importance_weights,
)


class PolicyUpdate(Fit, learning_rate=5e-4):
    """Steps on the clipped surrogate, whatever the advantages are."""

    objective: Literal["clipped", "plain"] = "clipped"
    """`clipped`: PPO's surrogate; `plain`: -A log π, which the clips below do not concern."""
    clip_low: float = Field(0.2, ge=0, lt=1)
    clip_high: float = Field(0.2, ge=0)
    dual_clip: float | None = Field(None, gt=1)
    """Bound of the loss of tokens with a negative advantage, in advantages; None: unbounded."""
    entropy_bonus: float = 0.0
    """Weight of the entropy, per nat; below 0 it sharpens the policy instead."""
    kl: KL = KL()
    previous_kl: float = Field(0.0, ge=0)
    """Weight of KL(π‖π_old) in the loss (k2), π_old the policy that this improvement started from: the proximal term of
    mirror descent, 1/η."""
    kl_limit: float | None = Field(None, gt=0)
    """Nats per token that one update may move the policy, KL(π_old‖π): a longer one is shortened (`step_size`). None: any."""
    importance_cap: float | None = Field(2.0, gt=0)
    """Largest weight π_learner/π_sampler of tokens sampled by other weights, in another precision, or by a mixture with the
    reference; None: no weights."""
    aggregation: Literal["token", "turn", "conversation"] = "token"
    """Whether each token counts alike, each agent turn, or each conversation."""


@dataclass(frozen=True)
class Measured:
    """What was measured before the first step, per token."""

    old: Tensor
    """log π of the policy that this update starts from."""
    reference: Tensor
    weights: Tensor
    """Truncated importance weights."""


def measure(
    core: Core, rows: Rows, logprobs: np.ndarray, versions: np.ndarray, update: PolicyUpdate, mixture: float = 0.0
) -> Measured:
    """Measure everything that the steps compare with.

    `logprobs` and `versions` [tokens] are the sampler's. mixture: the reference's share τ in the geometric mixture that
    sampled; above 0 the samples are not the policy's own, whatever their version.
    """
    options = ForwardOptions(core.temperature)
    sampled = core.tensor(logprobs)
    fresh = core.references.sampled(versions) and not mixture
    old = sampled if fresh else core.tensor(core.evaluate("policy", rows, options)["logprobs"])
    weights = torch.ones_like(old)
    if update.importance_cap is not None and not fresh:
        everything = torch.ones(1, len(old), dtype=torch.bool, device=old.device)
        weights = truncated_importance_weights(sampled[None], old[None], everything, update.importance_cap, "token")[0]
    reference = old
    if not core.references.is_policy(update.kl.reference):
        reference = core.tensor(core.evaluate(core.references.name(update.kl.reference), rows, options)["logprobs"])
    return Measured(old, reference, weights)


def policy_loss(measured: Measured, advantages: Tensor, shares: Tensor, update: PolicyUpdate) -> LossFunction:
    """Clipped surrogate with KL and entropy terms; `advantages` [tokens], `shares` [tokens] sum to 1 over the minibatch."""
    kl = update.kl

    def loss(outputs: Outputs, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs, share, old = outputs["logprobs"], shares[items], measured.old[items]
        weighted = share * measured.weights[items]  # a sample's KL, too, is an expectation under the policy
        surrogate = _surrogate(logprobs, old, advantages[items], update)
        total = (surrogate.loss * weighted).sum()
        divergence = kl_estimate(logprobs, measured.reference[items], kl.kind)
        entropy = (outputs["entropies"] * share).sum()
        statistics = {
            "policy_loss": total,
            "kl_reference": (kl_estimate(logprobs, measured.reference[items], "k3") * weighted).sum(),
            "kl_step": (surrogate.kl * share).sum(),
            "clip_fraction": (surrogate.clipped * share).sum(),
            "entropy": entropy,
        }
        if kl.place == "loss" and kl.coefficient:
            total = total + kl.coefficient * (divergence * weighted).sum()
        if update.previous_kl:
            total = total + update.previous_kl * (kl_estimate(logprobs, old, "k2") * weighted).sum()
        if update.entropy_bonus:
            total = total - update.entropy_bonus * entropy
        return total, statistics

    return loss


def _surrogate(logprobs: Tensor, old: Tensor, advantages: Tensor, update: PolicyUpdate) -> Surrogate:
    """The objective's loss per token; if it is plain nothing is ever clipped."""
    surrogate = clipped_surrogate(logprobs, old, advantages, update.clip_low, update.clip_high, update.dual_clip)
    if update.objective == "clipped":
        return surrogate
    return surrogate._replace(loss=reinforce_loss(logprobs, advantages), clipped=torch.zeros_like(surrogate.clipped))


class PolicySteps:
    """The optimiser steps of one update.

    `advantages`: [tokens]. `lengths`: int64, tokens of each of the parts that count alike (responses, turns, conversations),
    in the order of the tokens; None: each token counts alike. `weights`: [tokens], how much each counts besides; None: 1.
    `signal`: factor of the learning rate, for Adam's steps do not shrink with the advantages (see
    `objectives.advantages.signal`).
    """

    def __init__(
        self,
        core: Core,
        rows: Rows,
        measured: Measured,
        advantages: Tensor,
        lengths: Tensor | None,
        update: PolicyUpdate,
        signal: float = 1.0,
        weights: Tensor | None = None,
    ) -> None:
        self.core, self.rows, self.measured, self.advantages, self.update = core, rows, measured, advantages, update
        self._per_token = weights if lengths is None else torch.repeat_interleave(1.0 / lengths, lengths)
        if weights is not None and lengths is not None:
            self._per_token = self._per_token * weights
        self._step = replace(update.step, learning_rate=update.learning_rate * signal)

    def run(self, stream: str) -> Numbers:
        """Take all steps. Their numbers: means of the steps' own, and `policy_steps`, `trained_tokens`, `seconds`,
        `tokens_per_second`, and those of `bounded`. `stream` names the randomness of the minibatches."""
        started = time.perf_counter()
        generator, old, weights = self.core.generator(stream), self.measured.old, self.measured.weights
        with bounded(self.core, self.rows, old, weights, self.update.kl_limit, generator) as moved:
            history = run_epochs(self.rows, generator, self.update, self.minibatch)
        numbers, seconds = means(history), time.perf_counter() - started
        trained = sum(step["tokens"] for step in history)
        del numbers["tokens"]
        return (
            numbers
            | moved
            | {
                "policy_steps": float(len(history)),
                "trained_tokens": float(trained),
                "seconds": seconds,
                "tokens_per_second": trained / seconds,
            }
        )

    def minibatch(self, selection: np.ndarray) -> Numbers:
        """One step on the rows of `selection`; `tokens` counts those trained on."""
        update, items = self.update, self.rows.items_of(selection)
        statistics = self.core.update(
            "policy",
            self.rows,
            selection,
            policy_loss(self.measured, self.advantages, self._shares(self.core.tensor(items)), update),
            self._step,
            ForwardOptions(self.core.temperature, entropy_gradient=update.entropy_bonus != 0),
        )
        return statistics | {"tokens": float(len(items))}

    def _shares(self, items: Tensor) -> Tensor:
        """Weight of each token in the minibatch's mean, zero on the others, [tokens]."""
        shares = torch.zeros_like(self.measured.old)
        if self._per_token is None:
            shares[items] = 1.0 / len(items)
            return shares
        shares[items] = self._per_token[items]
        return shares / shares.sum()
