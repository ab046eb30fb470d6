"""Token advantages from token rewards of whole conversations: GAE with a critic, or returns minus a baseline of others.

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
from mtrl_ray.learner.rows.packing import Rows
from mtrl_ray.learner.rows.tables import Tables
from mtrl_ray.learner.sections import Fit
from mtrl_ray.objectives.advantages import (
    SCORE_FLOOR,
    aligned_baseline,
    broadcast_turns,
    gae,
    pooled_leave_one_out,
    signal,
    turn_gae,
    whiten,
)
from mtrl_ray.objectives.returns import discounted_sums
from mtrl_ray.objectives.turn_rewards import turn_sums
from mtrl_ray.settings.section import Section


class Advantages(Section, Operation[np.ndarray]):
    """Token advantages, float32 [agent tokens], from token rewards of the same shape.

    run: conversations, rewards. Numbers: `deviation` (before whitening); if whitened, `signal`, by which they are multiplied
    (see `objectives.advantages.signal`); of `ppo` and `turn_ppo`, `critic_loss` and `explained_variance` (before the fit).
    """

    doing: ClassVar[str] = "computing advantages"

    estimator: Literal["ppo", "turn_ppo", "grpo", "rloo", "reinforce_plus_plus"] = "rloo"
    """`ppo`: token critic and GAE over all agent tokens; `turn_ppo`: one value per state before an agent turn and GAE over
    turns, whose tokens share its advantage; `grpo`, `rloo`: returns against those of the other conversations on the same
    context, standardised or left one out; `reinforce_plus_plus`: returns against the batch's mean (2501.03262)."""
    baseline: Literal["aligned", "own_turn", "pooled"] = "aligned"
    """Of `grpo` and `rloo`. `aligned`: the others' returns from the same turn on (from their last, if they ended earlier);
    `own_turn`: a turn's tokens are credited with the turn's own reward alone, not with later ones, against the others' reward
    of the same turn: right if no turn changes what later ones can earn; `pooled`, of `rloo`: the others' mean turn reward,
    taken from each turn's reward, as in the released code; it is biased if conversations differ in their number of turns."""
    gae_lambda: float = Field(1.0, ge=0, le=1)
    """Of `ppo` per token, of `turn_ppo` per turn."""
    whiten: bool = True
    """Bring advantages to mean 0 and variance 1 over all agent tokens."""
    critic: Fit = Fit()
    """The token critic of `ppo`, the turn-level one of `turn_ppo`."""

    @model_validator(mode="after")
    def _possible(self) -> "Advantages":
        if self.baseline == "pooled" and self.estimator != "rloo":
            raise ValueError(f"baseline is pooled and estimator is {self.estimator}; pooled belongs to rloo alone")
        if self.baseline == "own_turn" and self.estimator not in ("rloo", "grpo"):
            raise ValueError(
                f"baseline is own_turn and estimator is {self.estimator}, which compares no turns of a group; use rloo or grpo"
            )
        return self

    def run(self, core: Core, conversations: Tables, rewards: np.ndarray) -> tuple[np.ndarray, Numbers]:
        """See the class."""
        batch = Batch.read(conversations)
        if len(rewards) != len(batch.logprobs) or not np.isfinite(rewards).all():
            raise DataError(
                f"{len(batch.logprobs)} agent tokens need as many finite rewards; {len(rewards)} were given"
            )
        layout = Layout(batch.dialogues, core.device)
        tokens, numbers = layout.tokens(core.tensor(rewards)), Numbers()
        if self.estimator in ("ppo", "turn_ppo"):
            estimate = self._with_critic if self.estimator == "ppo" else self._with_turn_critic
            advantages, numbers = estimate(core, batch, layout, tokens)
            raw = advantages
        elif self.estimator == "reinforce_plus_plus":
            returns = discounted_sums(tokens, layout.mask, 1.0)
            raw = advantages = torch.where(layout.mask, returns - returns[layout.mask].mean(), 0.0)
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
        values = layout.tokens(_predicted(core, "critic", batch.token_rows, tokens, layout.mask))
        advantages, returns = gae(tokens, values, layout.mask, 1.0, self.gae_lambda)
        numbers = self._fit(core, "critic", batch.token_rows, values[layout.mask], returns[layout.mask])
        return advantages, numbers

    def _with_turn_critic(self, core: Core, batch: Batch, layout: Layout, tokens: Tensor) -> tuple[Tensor, Numbers]:
        """GAE over turns; the critic of the states before them is fitted on the returns afterwards."""
        mask, index, present = layout.mask, layout.turn_index, layout.present
        per_turn = turn_sums(tokens, index, mask, layout.turns)
        values = layout.of_turns(_predicted(core, "turn_critic", batch.state_rows, per_turn, present))
        advantages, returns = turn_gae(per_turn, values, present, 1.0, self.gae_lambda)
        numbers = self._fit(core, "turn_critic", batch.state_rows, values[present], returns[present])
        return broadcast_turns(advantages, index, mask), numbers

    def _fit(self, core: Core, name: str, rows: Rows, values: Tensor, targets: Tensor) -> Numbers:
        """Fit a critic on its targets; its numbers, and what its `values` before the fit explained."""
        fitted = regress(core, name, rows, _numpy(targets), self.critic)
        numbers = {f"critic_{number}": value for number, value in fitted.items()}
        return numbers | {"explained_variance": explained_variance(values, targets)}


def _predicted(core: Core, name: str, rows: Rows, rewards: Tensor, mask: Tensor) -> Tensor:
    """A critic's values at the items of rows; its scale follows the returns of the rewards."""
    core.calibrate(name, _numpy(discounted_sums(rewards, mask, 1.0)[mask]))
    return core.tensor(core.evaluate(name, rows)["values"])


def _numpy(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
