"""Credit assignment: splits the outcome of a conversation into turn rewards, placed on tokens (2603.23550).

A turn's reward is placed on its last token; PRIME alone gives every token its own. The agent's words cost λ each, charged to
their turn; the rest is the scheme's split of the task score. The value model of the scheme `value` predicts a batch before it
is fitted on it.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtrl_ray.dialogue.conversation import EXPECTED, TURN_WEIGHTS
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.methods.values import explained_variance, regress
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.batch import Batch, Layout
from mtrl_ray.learner.rows.tables import Tables
from mtrl_ray.learner.sections import Fit
from mtrl_ray.objectives.advantages import place_at_turn_end
from mtrl_ray.objectives.turn_rewards import (
    dirichlet_weights,
    normalised,
    on_last_turn,
    rescaled,
    softmax_weights,
    td_errors,
    top_agreement,
    turn_sums,
)
from mtrl_ray.settings.section import Section

Scheme = Literal["outcome", "environment", "exact", "uniform", "value", "judge", "prime", "itpo", "norm_itpo"]
IMPLICIT: tuple[Scheme, ...] = ("prime", "itpo", "norm_itpo")
"""Schemes that score with the implicit process reward model."""
SPLITS: tuple[Scheme, ...] = ("uniform", "judge", "norm_itpo")
"""Schemes that give each turn a share of the score."""
EXACT = 1e-4
"""How far the sum of exact gains may be from the expected outcome."""


class TurnRewards(Section, Operation[np.ndarray]):
    """Token rewards, float32 [agent tokens].

    run: conversations; implicit rewards, float32 [agent tokens], of a scheme that scores with them, else None.
    Numbers: `outcome` (mean of score less the price of words), `words` (of the agent, per conversation), `environment` (mean
    sum of the environment's own rewards); `largest_weight` of schemes that split the outcome; `agreement` of the best turn with
    the users' own record and `agreement_chance`, if they keep one; `value_loss`, `explained_variance` of the scheme `value`.
    """

    doing: ClassVar[str] = "rewarding turns"

    scheme: Scheme = "norm_itpo"
    """`outcome`: all of it with the last turn, so every turn shares it; `environment`: not the outcome, but the rewards that
    the environment itself gave the turns; `exact`: not the outcome, but each turn's change of the expected outcome, which an
    environment knows that keeps such a record (option `horizon`); `uniform`: split at random (Dirichlet);
    `value`: TD errors of a turn-level value model; `judge`: split by a judge's weights; `prime`: implicit rewards of
    tokens, the outcome with the last turn; `itpo`: the same summed per turn; `norm_itpo`: split by softmax weights of
    the turns' implicit rewards."""
    length_penalty: float = Field(5e-5, ge=0)
    """λ: what each of the agent's words costs, in units of the score."""
    eta: float = Field(0.4, gt=0)
    """Temperature η of the softmax of `norm_itpo`: small gives all to the best turn, large splits evenly."""
    length_normalised: bool = True
    """`norm_itpo`: softmax of a turn's mean token reward times the batch's mean turn length, as in the released code;
    false: of the turn's sum, as in the paper."""
    rescale: bool = True
    """Implicit rewards in units of the batch's largest return of them, so that a PRM that still learns, or a small β,
    does not decide how much they weigh."""
    outcome_weight: float = Field(1.0, ge=0)
    """Of the score, with the last turn, beside the implicit rewards of `prime` and `itpo`."""
    value: Fit = Fit()
    """The turn-level value model of `value`."""

    def run(self, core: Core, conversations: Tables, implicit: np.ndarray | None = None) -> tuple[np.ndarray, Numbers]:
        """See the class."""
        batch = Batch.read(conversations)
        if self.scheme != "environment":
            batch.require_scores()
        layout = Layout(batch.dialogues, core.device)
        scores, costs = core.tensor(batch.scores), layout.of_turns(self.length_penalty * core.tensor(batch.words))
        outcome = scores - costs.sum(dim=1)
        numbers = {"outcome": float(outcome.mean()), "words": float(batch.words.sum() / len(batch))}
        numbers["environment"] = float(batch.rewards.sum() / len(batch))
        if self.scheme == "outcome":
            return _flat(layout, on_last_turn(outcome, layout.present)), numbers
        tokens = self._implicit(core, layout, implicit)
        credit, more = self._credit(core, batch, layout, tokens)
        numbers |= more | _agreement(batch, layout, core, credit)
        earned = credit * scores[:, None] if self.scheme in SPLITS else credit
        if self.scheme in ("itpo", "prime"):
            earned = self.outcome_weight * on_last_turn(scores, layout.present)
            earned = earned + (credit if self.scheme == "itpo" else 0.0)
        placed = place_at_turn_end(earned - costs, layout.turn_index, layout.mask)
        return _numpy((placed + tokens if self.scheme == "prime" else placed)[layout.mask]), numbers

    def _implicit(self, core: Core, layout: Layout, implicit: np.ndarray | None) -> Tensor:
        """The implicit rewards as a matrix, [conversations, tokens]; zeros if the scheme takes none."""
        if self.scheme not in IMPLICIT:
            return torch.zeros(layout.mask.shape, device=layout.mask.device)
        if implicit is None:
            raise ConfigurationError(f"scheme {self.scheme!r} scores with implicit rewards; none were given")
        tokens = layout.tokens(core.tensor(implicit))
        return rescaled(tokens, layout.mask) if self.rescale else tokens

    def _credit(self, core: Core, batch: Batch, layout: Layout, tokens: Tensor) -> tuple[Tensor, Numbers]:
        """Each turn's reward, or its share of the score if the scheme splits that, [conversations, turns]."""
        present = layout.present
        if self.scheme == "environment":
            return layout.of_turns(core.tensor(batch.rewards)), {}
        if self.scheme == "exact":
            return layout.of_turns(core.tensor(_exact(batch))), {}
        if self.scheme in ("itpo", "prime"):
            return turn_sums(tokens, layout.turn_index, layout.mask, layout.turns), {}
        if self.scheme == "value":
            return self._differences(core, batch, layout)
        if self.scheme == "uniform":
            generator = torch.Generator().manual_seed(int(core.generator("dirichlet").integers(2**62)))
            weights = dirichlet_weights(present.cpu(), 1.0, generator).to(present.device)
        elif self.scheme == "judge":
            weights = normalised(layout.of_turns(core.tensor(_judged(batch))))
        else:
            weights = softmax_weights(
                tokens, layout.turn_index, layout.mask, layout.turns, self.eta, self.length_normalised
            )
        return weights, {"largest_weight": float(weights.amax(dim=1).mean())}

    def _differences(self, core: Core, batch: Batch, layout: Layout) -> tuple[Tensor, Numbers]:
        """TD errors of the turn-level value model, which is fitted on the scores afterwards."""
        core.models.value("value")
        values = core.evaluate("value", batch.state_rows)["values"]
        outcomes = batch.scores[batch.turn_conversation]
        fitted = regress(core, "value", batch.state_rows, outcomes, self.value)
        numbers = {f"value_{name}": number for name, number in fitted.items()}
        numbers["explained_variance"] = explained_variance(torch.from_numpy(values), torch.from_numpy(outcomes))
        return td_errors(layout.of_turns(core.tensor(values)), layout.present, core.tensor(batch.scores)), numbers


def _judged(batch: Batch) -> np.ndarray:
    if batch.weights is None:
        raise DataError(f"scheme 'judge' takes the column {TURN_WEIGHTS!r} of the conversations; this table has none")
    return batch.weights


def _exact(batch: Batch) -> np.ndarray:
    """The gains, if they are what `EXPECTED` promises."""
    sums = np.bincount(batch.turn_conversation, weights=batch.gains, minlength=len(batch))
    wrong = np.flatnonzero(~(np.abs(sums - batch.expected) < EXACT))
    if len(wrong):
        name = batch.dialogues.ids[int(wrong[0])].as_py()
        raise DataError(
            f"scheme 'exact' takes gains that sum to the metric {EXPECTED!r}; those of conversation {name!r} sum to "
            f"{sums[wrong[0]]:g}, and {EXPECTED} is {batch.expected[wrong[0]]:g}: use an environment that knows them, such as "
            "medical with the option horizon"
        )
    return batch.gains


def _agreement(batch: Batch, layout: Layout, core: Core, credit: Tensor) -> Numbers:
    """How often the turn with the most credit is among the most important in the user's record, if there is one."""
    if not batch.gains.any():
        return {}
    agreement, chance = top_agreement(credit, layout.of_turns(core.tensor(batch.gains)), layout.present)
    return {"agreement": float(agreement), "agreement_chance": float(chance)} if agreement.isfinite() else {}


def _flat(layout: Layout, per_turn: Tensor) -> np.ndarray:
    """Turn rewards on the turns' last tokens, float32 [agent tokens]."""
    return _numpy(place_at_turn_end(per_turn, layout.turn_index, layout.mask)[layout.mask])


def _numpy(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
