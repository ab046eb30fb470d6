"""Credit assignment in whole conversations: an outcome becomes token rewards, token rewards become advantages.

1. `turn_rewards` places what each turn earned on the turn's last token (PRIME alone gives every token its own). The
   agent's words cost λ each, in the turn that said them; the rest is the scheme's split of the task score.
2. `advantages` turns token rewards into token advantages: GAE over all agent tokens with a token critic, or returns
   against those of the group. There is no discount; user spans are bridged.
3. Both give flat arrays, float32 [agent tokens], in the order of the table, and numbers. The policy's steps
   (`conversations`) take the advantages and know nothing of this file.

A value model predicts a batch before it is fitted on it: an advantage never contains its own outcome twice.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtrl_ray.dialogue.conversation import TURN_WEIGHTS
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.methods.updates import explained_variance
from mtrl_ray.learner.methods.values import regress
from mtrl_ray.learner.rows.batch import Batch, Layout
from mtrl_ray.learner.specification import IMPLICIT, SPLITS, Advantages, TurnRewards
from mtrl_ray.objectives.advantages import (
    aligned_baseline,
    broadcast_turns,
    gae,
    place_at_turn_end,
    pooled_leave_one_out,
    whiten,
)
from mtrl_ray.objectives.returns import discounted_sums
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

Numbers = dict[str, float]


def turn_rewards(
    core: Core, batch: Batch, spec: TurnRewards, implicit: np.ndarray | None
) -> tuple[np.ndarray, Numbers]:
    """Token rewards, float32 [agent tokens]; `implicit` float32 [agent tokens]. See `Learner.turn_rewards`."""
    layout = Layout(batch.dialogues, core.passes.device)
    scores, costs = core.tensor(batch.scores), layout.of_turns(spec.length_penalty * core.tensor(batch.words))
    numbers = {"outcome": float((scores - costs.sum(dim=1)).mean()), "words": float(batch.words.sum() / len(batch))}
    if spec.scheme == "outcome":
        return _flat(layout, on_last_turn(scores - costs.sum(dim=1), layout.present)), numbers
    tokens = _implicit(core, layout, spec, implicit)
    credit, found = _credit(core, batch, layout, spec, tokens)
    numbers |= found | _agreement(batch, layout, core, credit)
    earned = credit * scores[:, None] if spec.scheme in SPLITS else credit
    if spec.scheme in ("itpo", "prime"):
        earned = spec.outcome_weight * on_last_turn(scores, layout.present) + (credit if spec.scheme == "itpo" else 0.0)
    placed = place_at_turn_end(earned - costs, layout.turn_index, layout.mask)
    return _numpy((placed + tokens if spec.scheme == "prime" else placed)[layout.mask]), numbers


def _implicit(core: Core, layout: Layout, spec: TurnRewards, implicit: np.ndarray | None) -> Tensor:
    """The implicit rewards as a matrix, [conversations, tokens]; zeros where the scheme takes none."""
    if spec.scheme not in IMPLICIT:
        return torch.zeros(layout.mask.shape, device=layout.mask.device)
    if implicit is None:
        raise ConfigurationError(f"scheme {spec.scheme!r} scores with implicit rewards; none were given")
    tokens = layout.tokens(core.tensor(implicit))
    return rescaled(tokens, layout.mask) if spec.rescale else tokens


def _credit(core: Core, batch: Batch, layout: Layout, spec: TurnRewards, tokens: Tensor) -> tuple[Tensor, Numbers]:
    """Each turn's reward, or its share of the score where the scheme splits that, [conversations, turns]."""
    present, scores = layout.present, core.tensor(batch.scores)
    if spec.scheme in ("itpo", "prime"):
        return turn_sums(tokens, layout.turn_index, layout.mask, layout.turns), {}
    if spec.scheme == "value":
        values = core.evaluate("value", batch.state_rows)["values"]
        outcomes = batch.scores[batch.turn_conversation]
        fitted = regress(core, "value", batch.state_rows, outcomes, spec.value)
        numbers = {f"value_{name}": number for name, number in fitted.items()}
        numbers["explained_variance"] = explained_variance(torch.from_numpy(values), torch.from_numpy(outcomes))
        return td_errors(layout.of_turns(core.tensor(values)), present, scores), numbers
    if spec.scheme == "uniform":
        generator = torch.Generator().manual_seed(int(core.generator("dirichlet").integers(2**62)))
        weights = dirichlet_weights(present.cpu(), spec.concentration, generator).to(present.device)
    elif spec.scheme == "judge":
        weights = normalised(layout.of_turns(core.tensor(_judged(batch))))
    else:
        weights = softmax_weights(
            tokens, layout.turn_index, layout.mask, layout.turns, spec.eta, spec.length_normalised
        )
    return weights, {"largest_weight": float(weights.amax(dim=1).mean())}


def _judged(batch: Batch) -> np.ndarray:
    if batch.weights is None:
        raise DataError(f"scheme 'judge' takes the column {TURN_WEIGHTS!r} of the conversations; this table has none")
    return batch.weights


def _agreement(batch: Batch, layout: Layout, core: Core, credit: Tensor) -> Numbers:
    """How often the turn with the most credit is one that the user says mattered most, where users keep such a record."""
    if not batch.gains.any():
        return {}
    found, chance = top_agreement(credit, layout.of_turns(core.tensor(batch.gains)), layout.present)
    return {"agreement": float(found), "agreement_chance": float(chance)} if found.isfinite() else {}


def advantages(core: Core, batch: Batch, rewards: np.ndarray, spec: Advantages) -> tuple[np.ndarray, Numbers]:
    """Token advantages, float32 [agent tokens], out of token rewards of the same shape. See `Learner.advantages`."""
    if len(rewards) != len(batch.logprobs) or not np.isfinite(rewards).all():
        raise DataError(f"{len(batch.logprobs)} agent tokens need as many finite rewards; {len(rewards)} were given")
    layout = Layout(batch.dialogues, core.passes.device)
    tokens = layout.tokens(core.tensor(rewards))
    if spec.estimator == "ppo":
        found, numbers = _with_critic(core, batch, layout, tokens, spec)
    else:
        found, numbers = group_advantages(tokens, layout, core.tensor(batch.groups), spec), {}
    numbers["deviation"] = float(found[layout.mask].std(correction=0))
    if spec.whiten:
        found = whiten(found, layout.mask)
    return _numpy(found[layout.mask]), numbers


def group_advantages(tokens: Tensor, layout: Layout, groups: Tensor, spec: Advantages) -> Tensor:
    """Returns of token rewards against the group's, [conversations, tokens]."""
    mask, index = layout.mask, layout.turn_index
    per_turn = turn_sums(tokens, index, mask, layout.turns)
    if spec.baseline == "pooled":
        centred = discounted_sums(pooled_leave_one_out(per_turn, layout.present, groups), layout.present, 1.0)
        return broadcast_turns(centred, index, mask)
    from_turn = discounted_sums(per_turn, layout.present, 1.0)
    kind: Literal["grpo", "rloo"] = "grpo" if spec.estimator == "grpo" else "rloo"
    baseline, scale = aligned_baseline(from_turn, layout.present, groups, kind)
    returns = discounted_sums(tokens, mask, 1.0)
    return torch.where(mask, (returns - broadcast_turns(baseline, index, mask)) * scale, 0.0)


def _with_critic(core: Core, batch: Batch, layout: Layout, tokens: Tensor, spec: Advantages) -> tuple[Tensor, Numbers]:
    """GAE over all agent tokens; the critic is fitted on the returns afterwards."""
    first = _numpy(discounted_sums(tokens, layout.mask, 1.0)[layout.mask])
    core.calibrate("critic", first)
    values = core.evaluate("critic", batch.token_rows)["values"]
    found, returns = gae(tokens, layout.tokens(core.tensor(values)), layout.mask, 1.0, spec.gae_lambda)
    targets = _numpy(returns[layout.mask])
    fitted = regress(core, "critic", batch.token_rows, targets, spec.critic)
    numbers = {f"critic_{name}": number for name, number in fitted.items()}
    numbers["explained_variance"] = explained_variance(torch.from_numpy(values), torch.from_numpy(targets))
    return found, numbers


def _flat(layout: Layout, per_turn: Tensor) -> np.ndarray:
    """Turn rewards on the turns' last tokens, float32 [agent tokens]."""
    return _numpy(place_at_turn_end(per_turn, layout.turn_index, layout.mask)[layout.mask])


def _numpy(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
