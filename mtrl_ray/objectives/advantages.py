"""Advantages: how much better an agent's token, turn or conversation was than expected.

1. Two time scales (a conversation is a turn-level decision process, each response a token-level one), one estimator:
   generalised advantage estimation on the masked entries of a row, tokens or turns. User spans are skipped: the
   value after a turn is that of the next agent entry, and no discount is charged in between.
2. Without a value model, conversations of the same context are each other's baseline: `group_standardised` (GRPO),
   `group_centred` (Dr. GRPO), `leave_one_out` (RLOO); or the whole batch is: `batch_baseline` (REINFORCE++). Groups may
   differ in size; a group of one has no baseline, so its advantage is zero. Pass all members of a group in one call.
3. Rewards within conversations have a baseline per turn: `aligned_baseline` compares the return from a turn on with the
   others' from the same turn on, or from their last turn if they ended earlier. The baseline does not depend
   on what the conversation itself does later, so it adds no bias, and if the whole reward comes last it is the
   trajectory's own RLOO or GRPO.
4. Whitening over shards: the `moments` of the shards add up, and `whiten_with` their sum gives every shard what one
   process with all the rows would have computed. `signal` says whether there is anything to whiten.
5. `broadcast_turns` and `place_at_turn_end` carry turn values to tokens.

There is no normalisation per turn index: conversations stop at different turns, so which of them still have a turn h
depends on what was said, and the baseline of a turn must not depend on where its own conversation stopped.

Advantages carry no gradient.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.objectives.returns import require_same_shape, td_lambda_targets

EPSILON = 1e-6
"""Added to a group's standard deviation, so that a group of equal scores gives zeros and not a division by zero."""

VARIANCE_EPSILON = 1e-8
"""Added to the variance in `whiten_with`, for the same reason."""

SCORE_FLOOR = 0.01
"""A deviation of scores, which lie in [0, 1], below which what varies is no outcome but the price of words (1e-4) or the
noise of a value model: see `signal`."""


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, last_value: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the agent's tokens (1506.02438, eq. 16), skipping user spans.

    With t' the next agent token after t, `δ_t = r_t + γ V_{t'} - V_t` and `A_t = δ_t + γ λ A_{t'}`; the returns
    `A_t + V_t` are the value model's targets. They are the TD(λ) targets of V along the masked entries, which is
    how they are computed: one parallel scan, no loop over tokens.

    rewards, values: float [conversations, tokens], `values[i, t]` the value of the state in which token t was sampled;
    mask: bool, same shape, True on agent tokens (rewards and values elsewhere are not read); gamma, lam in [0, 1], per
    agent token; last_value: the value after a row's last agent token, float [conversations] or one number, zero for
    conversations that ended.
    Returns (advantages, returns), each [conversations, tokens], zero outside the mask.
    """
    returns = td_lambda_targets(rewards, values, mask, gamma, lam, bootstrap_last=last_value)
    return torch.where(mask, returns - values, 0.0), returns


def turn_gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, last_value: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """`gae` with whole responses as actions: one scalar value per state before an agent turn (2405.14655 §4.1).

    rewards, values: float [conversations, turns], rewards with the turn's KL penalty included, if there is one; mask:
    bool, same shape; gamma, lam per agent turn. Returns (advantages, returns), [conversations, turns].
    """
    return gae(rewards, values, mask, gamma, lam, last_value)


@torch.no_grad()
def group_centred(scores: Tensor, groups: Tensor) -> Tensor:
    """Score minus the mean of its group: Dr. GRPO (2503.20783), and what the other group baselines start from.

    scores: float [conversations]; groups: integer [conversations], the context each belongs to, any ids in any order.
    Returns float [conversations]. Equal scores give exact zeros.
    """
    return _centred(scores, groups)[0]


@torch.no_grad()
def group_standardised(scores: Tensor, groups: Tensor, floor: float = 0.0) -> Tensor:
    """GRPO (2402.03300 §4.1.2): `(x - mean) / (std + EPSILON)` within each group, std with n - 1 degrees of freedom.

    scores: float [conversations]; groups: integer [conversations]; floor: least std that is divided by. Returns float
    [conversations]; zero in groups of one and in groups of equal scores.
    """
    centred, index, size = _centred(scores, groups)
    squares = torch.zeros_like(size).index_add_(0, index, centred.square())
    deviation = (squares / (size - 1).clamp_min(1)).sqrt()
    return centred / (deviation[index].clamp_min(floor) + EPSILON)


@torch.no_grad()
def leave_one_out(scores: Tensor, groups: Tensor) -> Tensor:
    """RLOO (2402.14740): score minus the mean of the *others* in its group, `n/(n-1) (x - mean)`.

    scores: float [conversations]; groups: integer [conversations]. Returns float [conversations], zero in groups of 1.
    """
    centred, index, size = _centred(scores, groups)
    return centred * (size / (size - 1).clamp_min(1))[index]


@torch.no_grad()
def aligned_baseline(
    returns: Tensor, mask: Tensor, groups: Tensor, kind: Literal["rloo", "grpo"], floor: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Baseline and scale of every turn's return: a token's advantage is `(return - baseline) * scale`.

    With `Ĝ_jk` conversation j's return from turn k on, or from its last if it has fewer turns: "rloo" takes the mean of
    `Ĝ_jk` over the others of the group, and scale 1; "grpo" takes the mean over all of the group, and the inverse of
    `EPSILON` plus the root of the variance of `Ĝ_jk` over the group (n - 1), averaged over turns, but at least `floor`.

    returns: float [conversations, turns], sums of what comes from a turn on; mask: bool, same shape, a row's True entries
    first; groups: integer [conversations]. Conversations without turns are not part of any baseline. Returns (baseline, scale),
    float [conversations, turns] and [conversations, 1]; scale 0 in groups of one, which have no baseline.
    """
    require_same_shape(mask, returns=returns)
    last = (mask.sum(dim=1, keepdim=True) - 1).clamp_min(0)
    columns = torch.minimum(torch.arange(mask.shape[1], device=mask.device).expand_as(mask), last)
    held = returns.gather(1, columns).double() if mask.shape[1] else returns.double()
    present = mask.any(dim=1)
    _, index = torch.unique(groups, return_inverse=True)
    size = held.new_zeros(int(index.max()) + 1 if len(index) else 0).index_add_(0, index, present.double())
    held = torch.where(present[:, None], held, 0.0)
    total = held.new_zeros(len(size), held.shape[1]).index_add_(0, index, held)
    mean = (total / size.clamp_min(1)[:, None])[index]
    size = size[index][:, None]
    if kind == "rloo":
        baseline = (total[index] - held) / (size - 1).clamp_min(1)
        scale = (size > 1).to(returns.dtype)
    elif kind == "grpo":
        squares = torch.where(present[:, None], held - mean, 0.0).square().mean(dim=1)
        spread = torch.zeros_like(total[:, 0]).index_add_(0, index, squares)[index][:, None]
        deviation = (spread / (size - 1).clamp_min(1)).sqrt().clamp_min(floor)
        scale = ((size > 1) / (deviation + EPSILON)).to(returns.dtype)
        baseline = mean
    else:
        raise ConfigurationError(f"the group baseline is {kind!r}; it has to be 'rloo' or 'grpo'")
    return torch.where(mask, baseline, 0.0).to(returns.dtype), scale


@torch.no_grad()
def pooled_leave_one_out(rewards: Tensor, mask: Tensor, groups: Tensor) -> Tensor:
    """RLOO of every reward within conversations, as PRIME's and ITPO's released codes have it (2502.01456).

    `r_ik n/(n-1) - Σ_j mean_j/(n-1)` with `mean_j` over conversation j's rewards and n the conversations of the group.
    A turn's baseline is then, once summed over what comes after, proportional to how many turns its own conversation has
    left: biased if that depends on what was said. `aligned_baseline` is not.

    rewards: float [conversations, turns or tokens]; mask: bool, same shape; groups: integer [conversations], of any sizes.
    Returns the same shape, zero outside the mask and in groups of one.
    """
    require_same_shape(mask, rewards=rewards)
    count = mask.sum(dim=1)
    mean = torch.where(mask, rewards, 0.0).sum(dim=1) / count.clamp_min(1)
    _, index = torch.unique(groups, return_inverse=True)
    sums = mean.new_zeros(2, int(index.max()) + 1 if len(index) else 0)
    sums.index_add_(1, index, torch.stack([(count > 0).to(mean.dtype), mean]))
    size, total = sums[:, index][:, :, None]
    others = (size - 1).clamp_min(1)
    return torch.where(mask & (size > 1), rewards * size / others - total / others, 0.0)


@torch.no_grad()
def batch_baseline(scores: Tensor) -> Tensor:
    """REINFORCE++ (2501.03262): scores standardised over the whole batch, whatever context they come from.

    scores: float [conversations]. Returns float [conversations]. If rewards are per token, the same baseline is
    `whiten(discounted_sums(rewards, mask, gamma), mask)`.
    """
    rows = scores[:, None]
    return whiten(rows, torch.ones_like(rows, dtype=torch.bool))[:, 0]


@torch.no_grad()
def moments(x: Tensor, mask: Tensor) -> Tensor:
    """Count, sum and sum of squares of the masked entries, float64 [3]. The moments of shards add up (all-reduce: sum).

    x: float [conversations, turns or tokens]; mask: bool, same shape.
    """
    require_same_shape(mask, x=x)
    kept = torch.where(mask, x.double(), 0.0)
    return torch.stack([mask.sum().double(), kept.sum(), kept.square().sum()])


@torch.no_grad()
def whiten_with(x: Tensor, mask: Tensor, sums: Tensor) -> Tensor:
    """`(x - mean) / sqrt(var + VARIANCE_EPSILON)` with the mean and variance (n - 1) of `sums`: `moments`, added up.

    x: float [conversations, turns or tokens]; mask: bool, same shape; sums: float64 [3]. Returns the shape and dtype of
    x, zero outside the mask; all zero if `sums` counts fewer than two entries.
    """
    require_same_shape(mask, x=x)
    count, total, squares = sums.unbind()
    mean = total / count.clamp_min(1)
    variance = ((squares - total * mean) / (count - 1).clamp_min(1)).clamp_min(0)
    whitened = (x.double() - mean) * (variance + VARIANCE_EPSILON).rsqrt()
    return torch.where(mask & (count > 1), whitened, 0.0).to(x.dtype)


@torch.no_grad()
def whiten(x: Tensor, mask: Tensor, sums: Tensor | None = None) -> Tensor:
    """`whiten_with` the moments of x itself, or with `sums` that were added up over every shard of the batch."""
    return whiten_with(x, mask, moments(x, mask) if sums is None else sums)


@torch.no_grad()
def signal(x: Tensor, mask: Tensor) -> float:
    """Signal strength of advantages, in [0, 1]: their deviation in units of `SCORE_FLOOR`, at most 1.

    Whitening brings whatever varies to variance 1. If all outcomes are alike that is the price of words, and it would drive the
    policy as the outcome does; so whitened advantages, and the steps on them, are multiplied by this.

    x: float [conversations, turns or tokens], in units of the score, not whitened; mask: bool, same shape.
    """
    kept = x[mask]
    return min(1.0, float(kept.double().std(correction=0)) / SCORE_FLOOR) if len(kept) else 0.0


@torch.no_grad()
def broadcast_turns(turn_values: Tensor, turn_index: Tensor, mask: Tensor) -> Tensor:
    """Every agent token gets the value of its turn.

    turn_values: float [conversations, turns]; turn_index: int64 [conversations, tokens], the number of the agent turn a
    token belongs to, counted from 0 (not read outside the mask); mask: bool [conversations, tokens].
    Returns float [conversations, tokens], zero outside the mask. Raises ValueError if a token names no turn.
    """
    slots = _turn_slots(turn_values, turn_index, mask)
    return pad(turn_values, (0, 1)).gather(1, slots)


@torch.no_grad()
def place_at_turn_end(turn_rewards: Tensor, turn_index: Tensor, mask: Tensor) -> Tensor:
    """Every turn's reward on the turn's last agent token, zeros elsewhere: token rewards from turn rewards.

    turn_rewards: float [conversations, turns]; turn_index: int64 [conversations, tokens], as in `broadcast_turns`;
    mask: bool [conversations, tokens]. Returns float [conversations, tokens].
    Raises ValueError if a turn without tokens has a reward, which would be lost, or a token names no turn.
    """
    slots = _turn_slots(turn_rewards, turn_index, mask)
    positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    ends = positions.new_full((mask.shape[0], turn_rewards.shape[1] + 1), -1)
    ends = ends.scatter_reduce_(1, slots, positions, "amax")[:, :-1]
    if bool(((ends < 0) & (turn_rewards != 0)).any()):
        raise ValueError("a turn without agent tokens has a reward; there is no token to place it on")
    slots = torch.where(ends < 0, mask.shape[1], ends)
    return turn_rewards.new_zeros(mask.shape[0], mask.shape[1] + 1).scatter_(1, slots, turn_rewards)[:, :-1]


def _turn_slots(turn_values: Tensor, turn_index: Tensor, mask: Tensor) -> Tensor:
    """`turn_index` with one extra turn for every token outside the mask, int64 [conversations, tokens]."""
    require_same_shape(mask, turn_index=turn_index)
    turns = turn_values.shape[1]
    if bool((mask & ((turn_index < 0) | (turn_index >= turns))).any()):
        raise ValueError(f"an agent token's turn index lies outside the {turns} turns given; they count from 0")
    return torch.where(mask, turn_index, turns)


def _centred(scores: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores minus their group's mean, the group's index of each score, the size of each group.

    Scores are taken relative to their group's smallest first: equal scores then give exact zeros (a rounding error
    would be blown up by the division by a vanishing deviation), and a common offset costs no precision.
    """
    if scores.ndim != 1 or scores.shape != groups.shape:
        raise ValueError(f"scores {list(scores.shape)} and groups {list(groups.shape)} both have to be [conversations]")
    ids, index = torch.unique(groups, return_inverse=True)
    size = torch.zeros(len(ids), dtype=scores.dtype, device=scores.device).index_add_(0, index, torch.ones_like(scores))
    smallest = torch.full_like(size, torch.inf).scatter_reduce_(0, index, scores, "amin")
    above = scores - smallest[index]
    mean = torch.zeros_like(size).index_add_(0, index, above) / size
    return above - mean[index], index, size
