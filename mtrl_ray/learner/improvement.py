"""One policy improvement: token-level PPO, GRPO or REINFORCE on single responses in logged states (2511.21638 §2.3).

1. `gather` measures once, before the first step: log-probabilities of the policy and of the reference, the critic's
   values. Where every token was sampled by exactly these weights in this precision, the sampler's log-probabilities
   are taken.
2. `advantages` turns the responses' scores into advantages per token; the score arrives with the last token, the KL
   penalty with every token, and γ is 1 within a response.
3. `improve` takes `epochs` x `minibatches` steps on the clipped surrogate, and as many on the critic. Truncated
   importance weights correct for tokens that other weights sampled.

Everything per token is flat, float32 [response tokens], in the order of the table; everything per response is
[responses].
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtrl_ray.algorithms.advantages import batch_baseline, gae, group_standardised, leave_one_out, whiten
from mtrl_ray.algorithms.losses import clipped_surrogate, kl_estimate, truncated_importance_weights, value_loss
from mtrl_ray.errors import DataError
from mtrl_ray.learner.core import Core
from mtrl_ray.learner.microbatches import balance
from mtrl_ray.learner.packing import Rows, response_tokens
from mtrl_ray.learner.passes import LossFunction, Outputs, Reading, Step
from mtrl_ray.learner.specification import KL, Improvement
from mtrl_ray.learner.tables import Dialogues, Responses


@dataclass(frozen=True)
class Experience:
    """What was measured before the first step, per token; `scores`, `state` and `lengths` per response."""

    scores: Tensor
    state: Tensor
    lengths: Tensor
    old: Tensor
    """log π of the policy that this improvement starts from."""
    reference: Tensor
    weights: Tensor
    """Truncated importance weights."""
    values: Tensor | None
    """The critic's, of the state in which each token was sampled."""

    @property
    def mask(self) -> Tensor:
        """Where the padded matrix [responses, longest] has a token; its True entries are the flat tokens, in order."""
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        return torch.arange(longest, device=self.lengths.device) < self.lengths[:, None]


def gather(core: Core, rows: Rows, responses: Responses, scores: np.ndarray, spec: Improvement) -> Experience:
    """Measure everything that the steps compare with."""
    reading = Reading(spec.temperature)
    sampled = core.tensor(responses.logprobs)
    fresh = core.sampled_here(responses.versions)
    old = sampled if fresh else core.tensor(core.evaluate("policy", rows, reading)["logprobs"])
    weights = torch.ones_like(old)
    if spec.importance_cap is not None and not fresh:
        everything = torch.ones(1, len(old), dtype=torch.bool, device=old.device)
        weights = truncated_importance_weights(sampled[None], old[None], everything, spec.importance_cap, "token")[0]
    reference = old
    if not core.is_reference(spec.kl.reference):
        reference = core.tensor(core.evaluate(core.reference_name(spec.kl.reference), rows, reading)["logprobs"])
    values = None
    if spec.estimator == "ppo":
        core.calibrate("critic", scores)
        values = core.tensor(core.evaluate("critic", rows)["values"])
    return Experience(
        core.tensor(scores),
        core.tensor(responses.state),
        core.tensor(responses.lengths),
        old,
        reference,
        weights,
        values,
    )


def advantages(experience: Experience, spec: Improvement) -> tuple[Tensor, Tensor | None]:
    """(advantages, the critic's targets or None), float32 [response tokens]."""
    penalty = torch.zeros_like(experience.old)
    if spec.kl.place == "reward" and spec.kl.coefficient:
        penalty = spec.kl.coefficient * kl_estimate(experience.old, experience.reference, spec.kl.kind)
    mask = experience.mask
    if experience.values is not None:
        rewards, values = torch.zeros_like(mask, dtype=torch.float32), torch.zeros_like(mask, dtype=torch.float32)
        rewards[mask], values[mask] = -penalty, experience.values
        rewards[torch.arange(len(mask), device=mask.device), experience.lengths - 1] += experience.scores
        padded, targets = gae(rewards, values, mask, 1.0, spec.gae_lambda)
        found, returns = padded[mask], targets[mask]
    else:
        returns = None
        found = torch.repeat_interleave(_baselined(experience, penalty, spec), experience.lengths)
    if spec.whiten:
        found = whiten(found[None], torch.ones_like(found[None], dtype=torch.bool))[0]
    return found, returns


def _baselined(experience: Experience, penalty: Tensor, spec: Improvement) -> Tensor:
    """Score, less the response's KL penalty, against its baseline, [responses]."""
    response = torch.repeat_interleave(torch.arange(len(experience.lengths), device=penalty.device), experience.lengths)
    totals = experience.scores - torch.zeros_like(experience.scores).index_add_(0, response, penalty)
    if spec.estimator == "grpo":
        return group_standardised(totals, experience.state)
    if len(torch.unique(experience.state)) == len(experience.state):
        return batch_baseline(totals)
    return leave_one_out(totals, experience.state)


def policy_loss(
    experience: Experience, found: Tensor, weights: Tensor, spec: Improvement, kl: KL | None = None
) -> LossFunction:
    """Clipped surrogate with KL and entropy terms; `weights` [response tokens] sum to 1 over the minibatch."""
    kl = kl or spec.kl

    def loss(outputs: Outputs, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs, share, old = outputs["logprobs"], weights[items], experience.old[items]
        surrogate = clipped_surrogate(logprobs, old, found[items], spec.clip_low, spec.clip_high, spec.dual_clip)
        total = (surrogate.loss * share * experience.weights[items]).sum()
        divergence = kl_estimate(logprobs, experience.reference[items], kl.kind)
        entropy = (outputs["entropies"] * share).sum()
        statistics = {
            "policy_loss": total,
            "kl_reference": (kl_estimate(logprobs, experience.reference[items], "k3") * share).sum(),
            "kl_step": (surrogate.kl * share).sum(),
            "clip_fraction": (surrogate.clipped * share).sum(),
            "entropy": entropy,
        }
        if kl.place == "loss" and kl.coefficient:
            total = total + kl.coefficient * (divergence * share).sum()
        if spec.entropy_bonus:
            total = total - spec.entropy_bonus * entropy
        return total, statistics

    return loss


def critic_loss(old: Tensor, targets: Tensor, unit: float, count: int, spec: Improvement) -> LossFunction:
    """Squared error of the critic in units of its scale, a mean over the minibatch's `count` tokens."""

    def loss(outputs: Outputs, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        error = value_loss(outputs["values"] / unit, old[items] / unit, targets[items] / unit, spec.value_clip)
        total = error.sum() / count
        return total, {"critic_loss": total}

    return loss


def improve(
    core: Core, dialogues: Dialogues, responses: Responses, scores: np.ndarray, spec: Improvement
) -> dict[str, float]:
    """Improve the policy on these responses; `scores` float32 [responses]. Returns what `Learner.improve` says."""
    started = time.perf_counter()
    if not len(responses):
        raise DataError("there are no responses to improve the policy on; sample at least one")
    if len(scores) != len(responses) or not np.isfinite(scores).all():
        raise DataError(f"{len(responses)} responses need as many finite scores; {len(scores)} were given")
    rows = response_tokens(dialogues, responses, core.branch_tokens)
    experience = gather(core, rows, responses, scores, spec)
    found, targets = advantages(experience, spec)
    history = _Steps(core, rows, experience, found, targets, spec).run()
    trained = int(sum(step.pop("tokens") for step in history))
    seconds = time.perf_counter() - started
    metrics = _means(history) | {
        "score": float(scores.mean()),
        "score_deviation": float(scores.std()),
        "advantage_deviation": float(found.std(correction=0)),
        "importance_weight": float(experience.weights.mean()),
        "responses": float(len(responses)),
        "policy_steps": float(sum("policy_loss" in step for step in history)),
        "trained_tokens": float(trained),
        "seconds": seconds,
        "tokens_per_second": trained / seconds,
    }
    if experience.values is not None and targets is not None:
        metrics["explained_variance"] = explained_variance(experience.values, targets)
    return metrics


class _Steps:
    """The optimiser steps of one improvement."""

    def __init__(
        self, core: Core, rows: Rows, experience: Experience, found: Tensor, targets: Tensor | None, spec: Improvement
    ) -> None:
        self.core, self.rows, self.experience, self.found, self.targets, self.spec = (
            core, rows, experience, found, targets, spec
        )  # fmt: skip
        self.stopped = False

    def run(self) -> list[dict[str, float]]:
        """Statistics of each minibatch, in order."""
        history: list[dict[str, float]] = []
        generator = self.core.generator("improve")
        for _ in range(self.spec.epochs):
            units = generator.permutation(np.unique(self.rows.unit))
            parts = balance(self.rows, units, self.spec.minibatches)
            history += [self._minibatch(selection) for selection in parts]
        return history

    def _minibatch(self, selection: np.ndarray) -> dict[str, float]:
        items = self.rows.items_of(selection)
        statistics = {"tokens": 0.0}
        if not self.stopped:
            statistics |= self._policy_step(selection, items) | {"tokens": float(len(items))}
        if self.targets is not None and self.experience.values is not None:
            statistics |= self._critic_step(selection, len(items), self.experience.values, self.targets)
        return statistics

    def _policy_step(self, selection: np.ndarray, items: np.ndarray) -> dict[str, float]:
        spec = self.spec
        weights = self._shares(self.core.tensor(items))
        statistics = self.core.update(
            "policy",
            self.rows,
            selection,
            policy_loss(self.experience, self.found, weights, spec),
            Step(spec.learning_rate, spec.max_gradient_norm),
            Reading(spec.temperature, entropy_gradient=spec.entropy_bonus > 0),
        )
        self.stopped = spec.kl_stop is not None and statistics["kl_step"] > spec.kl_stop
        return statistics

    def _critic_step(self, selection: np.ndarray, count: int, values: Tensor, targets: Tensor) -> dict[str, float]:
        unit = self.core.models.value("critic").unit
        step = Step(self.spec.critic_learning_rate, self.spec.max_gradient_norm)
        loss = critic_loss(values, targets, unit, count, self.spec)
        statistics = self.core.update("critic", self.rows, selection, loss, step)
        named = {"gradient_norm": "critic_gradient_norm", "skipped": "critic_skipped"}
        return {named.get(name, name): value for name, value in statistics.items()}

    def _shares(self, items: Tensor) -> Tensor:
        """Weight of each token in the minibatch's mean, zero on the others, [response tokens]."""
        shares = torch.zeros_like(self.experience.old)
        if self.spec.aggregation == "token":
            shares[items] = 1.0 / len(items)
            return shares
        shares[items] = torch.repeat_interleave(1.0 / self.experience.lengths, self.experience.lengths)[items]
        return shares / shares.sum()


def explained_variance(predictions: Tensor, targets: Tensor) -> float:
    """1 - Var(targets - predictions) / Var(targets); 0 where the targets do not vary."""
    variance = float(targets.var(correction=0))
    return 1.0 - float((targets - predictions).var(correction=0)) / variance if variance > 0 else 0.0


def _means(history: list[dict[str, float]]) -> dict[str, float]:
    """Means over the steps that have each statistic; counts of skipped steps are sums."""
    names = sorted({name for step in history for name in step})
    means = {name: [step[name] for step in history if name in step] for name in names}
    sums = {"skipped", "critic_skipped"}
    return {name: float(np.sum(values) if name in sums else np.mean(values)) for name, values in means.items()}
