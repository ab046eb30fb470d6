"""Policy updates: optimiser steps on the clipped surrogate, advantages given. What made the advantages is not known here.

1. `measure` takes once, before the first step, what the steps compare with: log-probabilities of the policy that the
   update starts from and of the reference. Where every token was sampled by exactly these weights in this precision,
   the sampler's log-probabilities are taken. Truncated importance weights correct for tokens that other weights sampled,
   in the surrogate and in every KL.
2. `PolicySteps` takes the steps, minibatch by minibatch, until they are done or the policy has moved by `kl_stop`.
3. Any rows will do: responses in logged states (`improvement`), or all agent tokens of whole conversations
   (`conversations`).

Everything per token is flat, float32 [tokens], in the order of the table.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.compute.passes import LossFunction, Outputs, Reading, Step
from mtrl_ray.learner.rows.microbatches import balance
from mtrl_ray.learner.rows.packing import Rows
from mtrl_ray.learner.specification import PolicyUpdate
from mtrl_ray.objectives.losses import (
    Surrogate,
    clipped_surrogate,
    kl_estimate,
    reinforce_loss,
    truncated_importance_weights,
)


@dataclass(frozen=True)
class Measured:
    """What was measured before the first step, per token."""

    old: Tensor
    """log π of the policy that this update starts from."""
    reference: Tensor
    weights: Tensor
    """Truncated importance weights."""


def measure(core: Core, rows: Rows, logprobs: np.ndarray, versions: np.ndarray, spec: PolicyUpdate) -> Measured:
    """Measure everything that the steps compare with; `logprobs` and `versions` [tokens] are the sampler's."""
    reading = Reading(spec.temperature)
    sampled = core.tensor(logprobs)
    fresh = core.sampled_here(versions) and not spec.mixture
    old = sampled if fresh else core.tensor(core.evaluate("policy", rows, reading)["logprobs"])
    weights = torch.ones_like(old)
    if spec.importance_cap is not None and not fresh:
        everything = torch.ones(1, len(old), dtype=torch.bool, device=old.device)
        weights = truncated_importance_weights(sampled[None], old[None], everything, spec.importance_cap, "token")[0]
    reference = old
    if not core.is_reference(spec.kl.reference):
        reference = core.tensor(core.evaluate(core.reference_name(spec.kl.reference), rows, reading)["logprobs"])
    return Measured(old, reference, weights)


def policy_loss(measured: Measured, found: Tensor, shares: Tensor, spec: PolicyUpdate) -> LossFunction:
    """Clipped surrogate with KL and entropy terms; `found` are the advantages, `shares` sum to 1 over the minibatch."""
    kl = spec.kl

    def loss(outputs: Outputs, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs, share, old = outputs["logprobs"], shares[items], measured.old[items]
        weighted = share * measured.weights[items]  # a sample's KL, too, is an expectation under the policy
        surrogate = _surrogate(logprobs, old, found[items], spec)
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
        if spec.previous_kl:
            total = total + spec.previous_kl * (kl_estimate(logprobs, old, "k2") * weighted).sum()
        if spec.entropy_bonus:
            total = total - spec.entropy_bonus * entropy
        return total, statistics

    return loss


def _surrogate(logprobs: Tensor, old: Tensor, found: Tensor, spec: PolicyUpdate) -> Surrogate:
    """The objective's loss per token; where it is plain nothing is ever clipped."""
    surrogate = clipped_surrogate(logprobs, old, found, spec.clip_low, spec.clip_high, spec.dual_clip)
    if spec.objective == "clipped":
        return surrogate
    return surrogate._replace(loss=reinforce_loss(logprobs, found), clipped=torch.zeros_like(surrogate.clipped))


class PolicySteps:
    """The optimiser steps of one update.

    `found`: advantages [tokens]. `lengths`: int64, tokens of each of the parts that count alike (responses, turns,
    conversations), in the order of the tokens; None: each token counts alike.
    """

    def __init__(
        self, core: Core, rows: Rows, measured: Measured, found: Tensor, lengths: Tensor | None, spec: PolicyUpdate
    ) -> None:
        self.core, self.rows, self.measured, self.found, self.spec = core, rows, measured, found, spec
        self._per_token = None if lengths is None else torch.repeat_interleave(1.0 / lengths, lengths)
        self.stopped = False

    def run(self, stream: str) -> list[dict[str, float]]:
        """Statistics of each minibatch, in order; `stream` names the randomness of the minibatches."""
        history: list[dict[str, float]] = []
        generator = self.core.generator(stream)
        for _ in range(self.spec.epochs):
            units = generator.permutation(np.unique(self.rows.unit))
            parts = balance(self.rows, units, self.spec.minibatches)
            history += [self.minibatch(selection) for selection in parts]
        return history

    def minibatch(self, selection: np.ndarray) -> dict[str, float]:
        """One step on the rows of `selection`, unless the update has stopped; `tokens` counts those trained on."""
        if self.stopped:
            return {"tokens": 0.0}
        spec, items = self.spec, self.rows.items_of(selection)
        statistics = self.core.update(
            "policy",
            self.rows,
            selection,
            policy_loss(self.measured, self.found, self._shares(self.core.tensor(items)), spec),
            Step(spec.learning_rate, spec.max_gradient_norm),
            Reading(spec.temperature, entropy_gradient=spec.entropy_bonus > 0),
        )
        self.stopped = spec.kl_stop is not None and statistics["kl_step"] > spec.kl_stop
        return statistics | {"tokens": float(len(items))}

    def _shares(self, items: Tensor) -> Tensor:
        """Weight of each token in the minibatch's mean, zero on the others, [tokens]."""
        shares = torch.zeros_like(self.measured.old)
        if self._per_token is None:
            shares[items] = 1.0 / len(items)
            return shares
        shares[items] = self._per_token[items]
        return shares / shares.sum()


def explained_variance(predictions: Tensor, targets: Tensor) -> float:
    """1 - Var(targets - predictions) / Var(targets); 0 where the targets do not vary."""
    variance = float(targets.var(correction=0))
    return 1.0 - float((targets - predictions).var(correction=0)) / variance if variance > 0 else 0.0


def means(history: list[dict[str, float]]) -> dict[str, float]:
    """Means over the steps that have each statistic; counts of skipped steps are sums."""
    names = sorted({name for step in history for name in step})
    found = {name: [step[name] for step in history if name in step] for name in names}
    sums = {"skipped", "critic_skipped"}
    return {name: float(np.sum(values) if name in sums else np.mean(values)) for name, values in found.items()}
