"""Turn rewards from an outcome: those of the implicit process reward model, and all other splits (2603.23550).

1. A policy-shaped model π_φ and a frozen reference give every agent token the reward `r_t = β log π_φ/π_ref`; a turn's
   reward is the sum over its tokens. π_φ learns from outcomes alone: cross-entropy of `σ(Σ_t r_t)` with the outcome.
2. For such a model the sum up to a token is a value of the prefix, `β log E_{π_ref}[exp(r/β) | y_≤t]` with r the whole
   sequence's reward (2412.01981), so a token's or a turn's reward is a difference of values.
3. Norm-ITPO uses the rewards only to rank turns: softmax weights over turns, which split the outcome and
   therefore sum to it.
4. Rows are conversations; `mask` is True on agent tokens, `turn_index` numbers the agent turn that a token belongs to,
   from 0. What lies outside the mask is not read. Turns are [conversations, turns], zero if there is none.

Results do not depend on the split into micro-batches: statistics of the batch are computed on the whole batch.
Rewards carry no gradient; `prm_loss` does.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot, pad

from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.objectives.returns import discounted_sums, require_same_shape

RESCALE_EPSILON = 1e-6
"""Added to the largest return in `rescaled`, so that a model that has not learned gives zeros."""


@torch.no_grad()
def rescaled(token_rewards: Tensor, mask: Tensor) -> Tensor:
    """Token rewards divided by the batch's largest |return|, `max |Σ_{t'≥t} r_t'| + RESCALE_EPSILON`.

    token_rewards: float [conversations, tokens]; mask: bool, same shape. Returns the same shape, zero outside the mask.
    """
    largest = discounted_sums(token_rewards, mask, 1.0).abs().amax() if mask.numel() else 0.0
    return torch.where(mask, token_rewards, 0.0) / (largest + RESCALE_EPSILON)


@torch.no_grad()
def turn_sums(x: Tensor, turn_index: Tensor, mask: Tensor, turns: int) -> Tensor:
    """`R_k = Σ_{t∈T_k} x_t`: x summed over each turn's tokens.

    x: float [conversations, tokens]; turn_index: int64, mask: bool, same shape; turns: columns of the result.
    Returns float [conversations, turns].
    """
    require_same_shape(mask, x=x, turn_index=turn_index)
    slots = torch.where(mask, turn_index, turns)
    return x.new_zeros(len(x), turns + 1).scatter_add_(1, slots, torch.where(mask, x, 0.0))[:, :turns]


def turn_lengths(turn_index: Tensor, mask: Tensor, turns: int) -> Tensor:
    """Tokens of each turn, float32 [conversations, turns], 0 if there is no such turn."""
    return turn_sums(mask.float(), turn_index, mask, turns)


@torch.no_grad()
def softmax_weights(
    token_rewards: Tensor, turn_index: Tensor, mask: Tensor, turns: int, eta: float, length_normalised: bool
) -> Tensor:
    """Norm-ITPO's weights of the turns of each conversation, which sum to 1.

    `softmax_k(R_k / η)` as the paper has it, or length-normalised as its released code has it:
    `softmax_k(mean_{T_k}(r) · L̄ / η)`, L̄ the mean length of the batch's turns. A long turn then weighs no more for its
    length alone.

    token_rewards: float [conversations, tokens]; turn_index: int64, mask: bool, same shape; eta > 0.
    Returns float [conversations, turns], zero if there is no turn.
    """
    if eta <= 0:
        raise ConfigurationError(f"eta is {eta}; the softmax over turns needs a temperature above 0")
    lengths = turn_lengths(turn_index, mask, turns)
    present = lengths > 0
    logits = turn_sums(token_rewards, turn_index, mask, turns)
    if length_normalised:
        mean_length = lengths.sum() / present.sum().clamp_min(1)
        logits = logits / lengths.clamp_min(1) * mean_length
    weights = (logits / eta).masked_fill(~present, -torch.inf).softmax(dim=1)
    return torch.where(present, weights, 0.0)


def dirichlet_weights(present: Tensor, concentration: float, generator: torch.Generator) -> Tensor:
    """Random weights of the turns of each conversation, Dirichlet(concentration, …), which sum to 1.

    present: bool [conversations, turns], on the CPU as the generator is. Returns float32, same shape, zero if absent.
    """
    draws = torch.full(present.shape, concentration, dtype=torch.float64)
    draws = torch._standard_gamma(draws, generator=generator).clamp_min(torch.finfo(torch.float64).tiny)
    return normalised(torch.where(present, draws, 0.0)).float()


def normalised(weights: Tensor) -> Tensor:
    """Non-negative weights scaled to sum to 1 in each row; rows of zeros stay zero. [conversations, turns]."""
    total = weights.sum(dim=1, keepdim=True)
    return torch.where(total > 0, weights / total.clamp_min(torch.finfo(weights.dtype).tiny), 0.0)


def on_last_turn(values: Tensor, present: Tensor) -> Tensor:
    """A value per conversation on its last turn, zero on the others.

    values: float [conversations]; present: bool [conversations, turns], a row's True entries first. Returns the latter's
    shape; values of conversations without turns are dropped.
    """
    turns = present.shape[1]
    last = present.sum(dim=1) - 1
    place = one_hot(torch.where(last < 0, turns, last), turns + 1)[:, :turns]
    return values[:, None] * place


@torch.no_grad()
def td_errors(values: Tensor, present: Tensor, outcomes: Tensor) -> Tensor:
    """TD errors of a turn-level value model as turn rewards, `V(s_{k+1}) - V(s_k)`, the outcome after the last turn.

    They sum to the outcome less `V(s_1)`. values: float [conversations, turns], of the state before each turn; present:
    bool, same shape; outcomes: float [conversations]. Returns float [conversations, turns], zero if absent.
    """
    require_same_shape(present, values=values)
    following = pad(torch.where(present, values, 0.0)[:, 1:], (0, 1)) + on_last_turn(outcomes, present)
    return torch.where(present, following - values, 0.0)


def prm_loss(sums: Tensor, outcomes: Tensor) -> Tensor:
    """Cross-entropy of `σ(Σ_t r_t)` with the outcome, per conversation (2603.23550; 2502.01456).

    sums (with gradient): float [conversations], each conversation's token rewards summed; outcomes: float, same shape,
    in [0, 1]. Returns the same shape. Raises DataError for an outcome outside [0, 1].
    """
    low, high = (float(outcomes.amin()), float(outcomes.amax())) if outcomes.numel() else (0.0, 0.0)
    if low < 0.0 or high > 1.0:
        raise DataError(f"outcomes span [{low:g}, {high:g}]; the process reward model needs them in [0, 1]")
    return binary_cross_entropy_with_logits(sums, outcomes.detach(), reduction="none")


@torch.no_grad()
def pair_accuracy(sums: Tensor, outcomes: Tensor, groups: Tensor) -> Tensor:
    """How well a model orders the conversations of a group, a mean over groups: 1 all pairs right, 0.5 by chance.

    A pair counts with the difference of its outcomes; groups whose outcomes are all equal count 0.5, groups of one do
    not count. sums, outcomes: float [conversations]; groups: integer, same shape. Returns a scalar, 0.5 without groups.
    """
    found = []
    for group in groups.unique():
        s, y = sums[groups == group], outcomes[groups == group]
        if len(s) < 2:
            continue
        first, second = torch.triu_indices(len(s), len(s), offset=1, device=s.device)
        ahead, weight = y[first] - y[second], (y[first] - y[second]).abs()
        right = ((s[first] > s[second]) == (ahead > 0)).to(s.dtype)
        found.append((right * weight).sum() / weight.sum() if weight.sum() > 0 else s.new_tensor(0.5))
    return torch.stack(found).mean() if found else sums.new_tensor(0.5)


@torch.no_grad()
def sign_accuracy(sums: Tensor, outcomes: Tensor) -> Tensor:
    """Share of conversations whose summed reward is positive where the outcome is above one half, negative below.

    sums, outcomes: float [conversations]. Returns a scalar.
    """
    return (sums.sign() == (2.0 * outcomes - 1.0).sign()).to(sums.dtype).mean()


@torch.no_grad()
def top_agreement(scores: Tensor, record: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """How often the turn with the highest score is one of those that mattered most, and how often a random turn is.

    scores, record: float [conversations, turns], the record at least 0; present: bool, same shape. Conversations with
    fewer than two turns, or whose record is all zero, do not count. Returns two scalars, NaN if none counts.
    """
    known = (present.sum(dim=1) > 1) & (torch.where(present, record, 0.0) > 0).any(dim=1)
    scores, record, present = scores[known], record[known], present[known]
    if not len(scores):
        return scores.new_tensor(torch.nan), scores.new_tensor(torch.nan)
    best = torch.where(present, record, -torch.inf)
    best = present & (best == best.amax(dim=1, keepdim=True))
    chosen = torch.where(present, scores, -torch.inf).argmax(dim=1, keepdim=True)
    agrees = best.gather(1, chosen)[:, 0].to(scores.dtype)
    return agrees.mean(), (best.sum(dim=1) / present.sum(dim=1)).to(scores.dtype).mean()
