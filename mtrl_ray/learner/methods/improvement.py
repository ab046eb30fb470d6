"""One policy improvement: token-level PPO, GRPO or REINFORCE on single responses in logged states (2511.21638 §2.3).

1. `gather` measures once, before the first step: what `updates` compares with, and the critic's values.
2. `advantages` turns the responses' scores into advantages per token; the score arrives with the last token, the KL
   penalty with every token, and γ is 1 within a response.
3. `improve` takes `epochs` x `minibatches` steps on the policy, and as many on the critic.

Everything per token is flat, float32 [response tokens], in the order of the table; everything per response is
[responses].
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtrl_ray.errors import DataError
from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.compute.passes import LossFunction, Outputs, Step
from mtrl_ray.learner.methods.updates import Measured, PolicySteps, explained_variance, means, measure
from mtrl_ray.learner.rows.packing import Rows, response_tokens
from mtrl_ray.learner.rows.tables import Dialogues, Responses
from mtrl_ray.learner.specification import Improvement
from mtrl_ray.objectives.advantages import batch_baseline, gae, group_standardised, leave_one_out, whiten
from mtrl_ray.objectives.losses import kl_estimate, value_loss


@dataclass(frozen=True)
class Experience:
    """What was measured before the first step; `scores`, `state` and `lengths` per response."""

    measured: Measured
    scores: Tensor
    state: Tensor
    lengths: Tensor
    values: Tensor | None
    """The critic's, of the state in which each token was sampled."""

    @property
    def mask(self) -> Tensor:
        """Where the padded matrix [responses, longest] has a token; its True entries are the flat tokens, in order."""
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        return torch.arange(longest, device=self.lengths.device) < self.lengths[:, None]


def gather(core: Core, rows: Rows, responses: Responses, scores: np.ndarray, spec: Improvement) -> Experience:
    """Measure everything that advantages and steps need."""
    measured = measure(core, rows, responses.logprobs, responses.versions, spec)
    values = None
    if spec.estimator == "ppo":
        core.calibrate("critic", scores)
        values = core.tensor(core.evaluate("critic", rows)["values"])
    return Experience(
        measured, core.tensor(scores), core.tensor(responses.state), core.tensor(responses.lengths), values
    )


def advantages(experience: Experience, spec: Improvement) -> tuple[Tensor, Tensor | None]:
    """(advantages, the critic's targets or None), float32 [response tokens]."""
    measured = experience.measured
    penalty = torch.zeros_like(measured.old)
    if spec.kl.place == "reward" and spec.kl.coefficient:
        penalty = spec.kl.coefficient * kl_estimate(measured.old, measured.reference, spec.kl.kind)
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
    history = _Steps(core, rows, experience, found, targets, spec).run("improve")
    trained = int(sum(step.pop("tokens") for step in history))
    seconds = time.perf_counter() - started
    metrics = means(history) | {
        "score": float(scores.mean()),
        "score_deviation": float(scores.std()),
        "advantage_deviation": float(found.std(correction=0)),
        "importance_weight": float(experience.measured.weights.mean()),
        "responses": float(len(responses)),
        "policy_steps": float(sum("policy_loss" in step for step in history)),
        "trained_tokens": float(trained),
        "seconds": seconds,
        "tokens_per_second": trained / seconds,
    }
    if experience.values is not None and targets is not None:
        metrics["explained_variance"] = explained_variance(experience.values, targets)
    return metrics


class _Steps(PolicySteps):
    """The policy's steps, each followed by one of the critic where there are targets for it."""

    def __init__(
        self, core: Core, rows: Rows, experience: Experience, found: Tensor, targets: Tensor | None, spec: Improvement
    ) -> None:
        alike = None if spec.aggregation == "token" else experience.lengths
        super().__init__(core, rows, experience.measured, found, alike, spec)
        self._values, self._targets, self._critic = experience.values, targets, spec

    def minibatch(self, selection: np.ndarray) -> dict[str, float]:
        """See `PolicySteps.minibatch`."""
        statistics = super().minibatch(selection)
        if self._targets is not None and self._values is not None:
            count = len(self.rows.items_of(selection))
            statistics |= self._critic_step(selection, count, self._values, self._targets)
        return statistics

    def _critic_step(self, selection: np.ndarray, count: int, values: Tensor, targets: Tensor) -> dict[str, float]:
        unit = self.core.models.value("critic").unit
        step = Step(self._critic.critic_learning_rate, self._critic.max_gradient_norm)
        loss = critic_loss(values, targets, unit, count, self._critic)
        statistics = self.core.update("critic", self.rows, selection, loss, step)
        named = {"gradient_norm": "critic_gradient_norm", "skipped": "critic_skipped"}
        return {named.get(name, name): value for name, value in statistics.items()}
