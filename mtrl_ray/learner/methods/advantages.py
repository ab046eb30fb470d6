"""Token advantages from token rewards of whole conversations: GAE with a token critic, or returns minus the group's baseline.

There is no discount; user spans are skipped. The critic predicts a batch before it is fitted on it: an advantage never
contains its own outcome twice. The policy's steps (`conversations`) take the advantages and do not depend on this file.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from mtrl_ray.errors import DataError
from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.methods.values import explained_variance, regress
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.batch import Batch, Layout
from mtrl_ray.learner.rows.tables import Tables
from mtrl_ray.learner.sections import Fit
from mtrl_ray.objectives.advantages import (
    SCORE_FLOOR,
    aligned_baseline,
    broadcast_turns,
    gae,
    pooled_leave_one_out,
    signal,
    whiten,
)
from mtrl_ray.objectives.returns import discounted_sums
from mtrl_ray.objectives.turn_rewards import turn_sums
from mtrl_ray.settings.section import Section


class Advantages(Section, Operation[np.ndarray]):
    """Token advantages, float32 [agent tokens], from token rewards of the same shape.

    run: conversations, rewards. Numbers: `deviation` (before whitening); if whitened, `signal`, by which they are multiplied
    (see `objectives.advantages.signal`); of `ppo`, `critic_loss` and `explained_variance` (before the critic's fit).
    """

    doing: ClassVar[str] = "computing advantages"

    estimator: Literal["ppo", "grpo", "rloo"] = "rloo"
    """`ppo`: token critic and GAE over all agent tokens; `grpo`, `rloo`: returns against those of the other
    conversations on the same context, standardised or left one out."""
    baseline: Literal["aligned", "own_turn", "pooled"] = "aligned"
    """Of `grpo` and `rloo`. `aligned`: the others' returns from the same turn on (from their last, if they ended earlier);
    `own_turn`: a turn's tokens are credited with the turn's own reward alone, not with later ones, against the others' reward
    of the same turn: right if no turn changes what later ones can earn; `pooled`, of `rloo`: the others' mean turn reward,
    taken from each turn's reward, as in the released code; it is biased if conversations differ in their number of turns."""
    gae_lambda: float = Field(1.0, ge=0, le=1)
    """Of `ppo`, per token."""
    whiten: bool = True
    """Bring advantages to mean 0 and variance 1 over all agent tokens."""
    critic: Fit = Fit()
    """The token critic of `ppo`."""

    @model_validator(mode="after")
    def _possible(self) -> "Advantages":
        if self.baseline == "pooled" and self.estimator != "rloo":
            raise ValueError(f"baseline is pooled and estimator is {self.estimator}; pooled belongs to rloo alone")
        if self.baseline == "own_turn" and self.estimator == "ppo":
            raise ValueError("baseline is own_turn and estimator is ppo, which has a critic; use rloo or grpo")
        return self

    def run(self, core: Core, conversations: Tables, rewards: np.ndarray) -> tuple[np.ndarray, Numbers]:
        """See the class."""
        batch = Batch.read(conversations)
        if len(rewards) != len(batch.logprobs) or not np.isfinite(rewards).all():
            raise DataError(
                f"{len(batch.logprobs)} agent tokens need as many finite rewards; {len(rewards)} were given"
            )
        layout = Layout(batch.dialogues, core.passes.device)
        tokens, numbers = layout.tokens(core.tensor(rewards)), Numbers()
        if self.estimator == "ppo":
            advantages, numbers = self._with_critic(core, batch, layout, tokens)
            raw = advantages
        else:
            raw, scale = self._against_group(tokens, layout, core.tensor(batch.groups))
            advantages = raw * scale
        numbers["deviation"] = float(advantages[layout.mask].std(correction=0))
        if self.whiten:
            numbers["signal"] = signal(raw, layout.mask)
            advantages = whiten(advantages, layout.mask) * numbers["signal"]
        return _numpy(advantages[layout.mask]), numbers

    def _against_group(self, tokens: Tensor, layout: Layout, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Returns of token rewards minus the group's baseline, [conversations, tokens], and the factor applied to them."""
        mask, index = layout.mask, layout.turn_index
        per_turn = turn_sums(tokens, index, mask, layout.turns)
        if self.baseline == "pooled":
            centred = discounted_sums(pooled_leave_one_out(per_turn, layout.present, groups), layout.present, 1.0)
            return broadcast_turns(centred, index, mask), torch.ones_like(centred[:, :1])
        own = self.baseline == "own_turn"
        from_turn = per_turn if own else discounted_sums(per_turn, layout.present, 1.0)
        kind: Literal["grpo", "rloo"] = "grpo" if self.estimator == "grpo" else "rloo"
        baseline, scale = aligned_baseline(from_turn, layout.present, groups, kind, SCORE_FLOOR)
        returns = discounted_sums(tokens, mask, 1.0)
        if own:
            returns = returns - broadcast_turns(discounted_sums(per_turn, layout.present, 1.0) - per_turn, index, mask)
        return torch.where(mask, returns - broadcast_turns(baseline, index, mask), 0.0), scale

    def _with_critic(self, core: Core, batch: Batch, layout: Layout, tokens: Tensor) -> tuple[Tensor, Numbers]:
        """GAE over all agent tokens; the critic is fitted on the returns afterwards."""
        core.calibrate("critic", _numpy(discounted_sums(tokens, layout.mask, 1.0)[layout.mask]))
        values = core.evaluate("critic", batch.token_rows)["values"]
        advantages, returns = gae(tokens, layout.tokens(core.tensor(values)), layout.mask, 1.0, self.gae_lambda)
        targets = _numpy(returns[layout.mask])
        fitted = regress(core, "critic", batch.token_rows, targets, self.critic)
        numbers = {f"critic_{name}": number for name, number in fitted.items()}
        numbers["explained_variance"] = explained_variance(torch.from_numpy(values), torch.from_numpy(targets))
        return advantages, numbers


def _numpy(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
