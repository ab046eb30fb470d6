"""One policy improvement: token-level PPO, GRPO or REINFORCE on single responses in logged states (2511.21638 §2.3).

`_gather` measures once, before the first step: the log-probabilities that `updates` compares with, and the critic's values.
`_advantages` turns the responses' scores into advantages per token; the score arrives with the last token, the KL penalty with
every token, and γ is 1 within a response. Then follow `epochs` passes of steps on the policy, and as many on the critic.

Everything per token is flat, float32 [response tokens], in the order of the table; everything per response is [responses].
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from mtrl_ray.errors import DataError
from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.compute.optimisation import Step
from mtrl_ray.learner.methods.q import score
from mtrl_ray.learner.methods.updates import Measured, PolicySteps, PolicyUpdate, measure
from mtrl_ray.learner.methods.values import explained_variance, squared_error
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.packing import Rows, response_tokens
from mtrl_ray.learner.rows.tables import Dialogues, Responses, Tables
from mtrl_ray.objectives.advantages import (
    SCORE_FLOOR,
    batch_baseline,
    gae,
    group_centred,
    group_standardised,
    leave_one_out,
    signal,
    whiten,
)
from mtrl_ray.objectives.losses import kl_estimate
from mtrl_ray.statistics.ranking import spread


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


class Improvement(PolicyUpdate, Operation[None]):
    """Single-turn policy improvement at token level (2511.21638 §2.3).

    run: conversations; responses; scores, float32 [responses], Q's if None.
    Numbers: means over the steps of `policy_loss`, `critic_loss`, `kl_reference` (k3, nats per token), `kl_step` (to the policy
    it started from), `clip_fraction`, `entropy` (nats), `gradient_norm`, `critic_gradient_norm`; sums `skipped`,
    `critic_skipped`, `policy_steps`, `trained_tokens`; `score`, `score_deviation`, `score_within` and `score_between` (see
    `statistics.ranking.Spread`; not if every state has one response), `explained_variance` of the critic before
    the steps, `signal` (see `objectives.advantages.signal`), `importance_weight`, `advantage_deviation`, `truncated`
    (share of the responses that ended at the token limit), `responses`, `seconds`, `tokens_per_second`.
    """

    doing: ClassVar[str] = "improving the policy"

    estimator: Literal["ppo", "grpo", "reinforce"] = "ppo"
    """`ppo`: token critic and GAE; `grpo`: score standardised among those on its state; `reinforce`: score minus
    the mean of the others on its state, or minus the batch's if every state has one response."""
    critic_learning_rate: float = Field(1e-3, gt=0)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Per token, with no discount between the tokens of one response."""
    whiten: bool = True
    """Bring advantages to mean 0 and variance 1 over all tokens."""

    @model_validator(mode="after")
    def _responses_are_turns(self) -> "Improvement":
        if self.aggregation == "conversation":
            raise ValueError("aggregation is conversation, but single responses are improved; use token or turn")
        return self

    def run(
        self, core: Core, conversations: Tables, responses: Tables, scores: np.ndarray | None = None
    ) -> tuple[None, Numbers]:
        """See the class."""
        dialogues = Dialogues.read(conversations)
        single = Responses.read(responses, dialogues)
        given = np.asarray(score(core, dialogues, single) if scores is None else scores, dtype=np.float32)
        if not len(single):
            raise DataError("there are no responses to improve the policy on; sample at least one")
        if len(given) != len(single) or not np.isfinite(given).all():
            raise DataError(f"{len(single)} responses need as many finite scores; {len(given)} were given")
        rows = response_tokens(dialogues, single, core.branch_tokens)
        experience = self._gather(core, rows, single, given)
        advantages, targets, strength = self._advantages(experience)
        numbers = _Steps(core, rows, experience, advantages, targets, self, strength).run("improve")
        if experience.values is not None and targets is not None:
            numbers["explained_variance"] = explained_variance(experience.values, targets)
        return None, numbers | spread(given, single.state).numbers("score") | {
            "score": float(given.mean()),
            "score_deviation": float(given.std()),
            "signal": strength,
            "advantage_deviation": float(advantages.std(correction=0)),
            "importance_weight": float(experience.measured.weights.mean()),
            "truncated": float(single.truncated.mean()),
            "responses": float(len(single)),
        }

    def _gather(self, core: Core, rows: Rows, responses: Responses, scores: np.ndarray) -> Experience:
        """Measure everything that advantages and steps need."""
        measured = measure(core, rows, responses.logprobs, responses.versions, self)
        values = None
        if self.estimator == "ppo":
            core.calibrate("critic", scores)
            values = core.tensor(core.evaluate("critic", rows)["values"])
        state, lengths = core.tensor(responses.state), core.tensor(responses.lengths)
        return Experience(measured, core.tensor(scores), state, lengths, values)

    def _advantages(self, experience: Experience) -> tuple[Tensor, Tensor | None, float]:
        """(advantages, the critic's targets or None), float32 [response tokens], and the `signal` that they are."""
        measured = experience.measured
        penalty = torch.zeros_like(measured.old)
        if self.kl.place == "reward" and self.kl.coefficient:
            penalty = self.kl.coefficient * kl_estimate(measured.old, measured.reference, self.kl.kind)
        mask = experience.mask
        if experience.values is not None:
            rewards, values = torch.zeros_like(mask, dtype=torch.float32), torch.zeros_like(mask, dtype=torch.float32)
            rewards[mask], values[mask] = -penalty, experience.values
            rewards[torch.arange(len(mask), device=mask.device), experience.lengths - 1] += experience.scores
            padded, targets = gae(rewards, values, mask, 1.0, self.gae_lambda)
            advantages, returns = padded[mask], targets[mask]
            raw = advantages
        else:
            returns = None
            per_response = self._baselined(experience, penalty)
            advantages, raw = (torch.repeat_interleave(one, experience.lengths) for one in per_response)
        if not self.whiten:
            return advantages, returns, 1.0
        everything = torch.ones_like(advantages[None], dtype=torch.bool)
        strength = signal(raw[None], everything)
        return whiten(advantages[None], everything)[0] * strength, returns, strength

    def _baselined(self, experience: Experience, penalty: Tensor) -> tuple[Tensor, Tensor]:
        """Score, less the response's KL penalty, against its baseline, [responses]; the same in units of the score."""
        lengths = experience.lengths
        response = torch.repeat_interleave(torch.arange(len(lengths), device=penalty.device), lengths)
        totals = experience.scores - torch.zeros_like(experience.scores).index_add_(0, response, penalty)
        if self.estimator == "grpo":
            return group_standardised(totals, experience.state, SCORE_FLOOR), group_centred(totals, experience.state)
        if len(torch.unique(experience.state)) == len(experience.state):
            return batch_baseline(totals), totals
        advantages = leave_one_out(totals, experience.state)
        return advantages, advantages


class _Steps(PolicySteps):
    """The policy's steps, each followed by one of the critic if there are targets for it."""

    def __init__(
        self,
        core: Core,
        rows: Rows,
        experience: Experience,
        advantages: Tensor,
        targets: Tensor | None,
        improvement: Improvement,
        strength: float,
    ) -> None:
        alike = None if improvement.aggregation == "token" else experience.lengths
        super().__init__(core, rows, experience.measured, advantages, alike, improvement, strength)
        self._targets = targets
        self._critic = Step(improvement.critic_learning_rate, improvement.max_gradient_norm)

    def minibatch(self, selection: np.ndarray) -> Numbers:
        """See `PolicySteps.minibatch`."""
        statistics = super().minibatch(selection)
        return statistics if self._targets is None else statistics | self._critic_step(selection, self._targets)

    def _critic_step(self, selection: np.ndarray, targets: Tensor) -> Numbers:
        unit, count = self.core.models.value("critic").unit, len(self.rows.items_of(selection))
        statistics = self.core.update("critic", self.rows, selection, squared_error(targets, unit, count), self._critic)
        return {f"critic_{name}": value for name, value in statistics.items()}
