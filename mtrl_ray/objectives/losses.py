"""Losses: advantages and targets turned into gradients, per token first, aggregated last.

1. Per-token functions (`clipped_surrogate`, `reinforce_loss`, `kl_estimate`) return one number per token
   and take no mask. `masked_mean` ignores entries outside the mask, so these may have any finite value: pad with zeros.
2. `masked_mean` aggregates: over tokens, or over conversations of token means. The shards' results add up to the whole
   batch's, gradient included, if each gets the same `denominator`: the sum of the shards' `local_denominator`.
3. Ratios are exponentials of log-probability differences, which a stale or mismatched token can drive to overflow.
   The differences are clamped to ±`LOG_RATIO_BOUND` before the exponential: beyond it a token's ratio is constant, and
   it has no gradient, instead of an infinite or not-a-number one.
4. Off-policy corrections are weights, not objectives: they carry no gradient. Nor do advantages, old log-probabilities
   and targets.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.objectives.returns import require_same_shape

LOG_RATIO_BOUND = 20.0
"""Largest |log π - log π'| in an exponential: e^20 is 5e8, far beyond every clip and safe to square in float32."""

Aggregation = Literal["token", "conversation"]


def masked_mean(
    x: Tensor, mask: Tensor, how: Aggregation = "token", denominator: Tensor | float | None = None
) -> Tensor:
    """Mean over the agent's tokens, each token counting alike ("token") or each conversation ("conversation").

    "token": `Σ x / denominator`; "conversation": `Σ_rows (mean of x over the row's tokens) / denominator`, rows without
    agent tokens not counting. denominator: the `local_denominator` where None; its sum over all micro-batches and
    processes makes their results add up to the whole batch's; a constant gives Dr. GRPO's scaled sum (2503.20783).

    x: float [conversations, tokens]; mask: bool, same shape. Returns a scalar; zero for an empty mask.
    """
    require_same_shape(mask, x=x)
    total = (torch.where(mask, x, 0.0) * token_weights(mask, how, x.dtype)).sum()
    if denominator is None:
        denominator = local_denominator(mask, how).clamp_min(1)
    return total / torch.as_tensor(denominator, dtype=x.dtype, device=x.device)


@torch.no_grad()
def token_weights(mask: Tensor, how: Aggregation, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weight of each token in `masked_mean` before the denominator, [conversations, tokens], zero outside the mask.

    If several conversations are packed into one row, the weights of the unpacked mask travel along with the tokens:
    `masked_mean(x * weights, mask, "token", denominator)` is then the mean over conversations.
    """
    if how == "token":
        return mask.to(dtype)
    if how == "conversation":
        return mask.to(dtype) / mask.sum(dim=1, keepdim=True).clamp_min(1)
    raise ConfigurationError(f"aggregation is {how!r}; it has to be 'token' or 'conversation'")


@torch.no_grad()
def local_denominator(mask: Tensor, how: Aggregation) -> Tensor:
    """Number of agent tokens ("token") or of rows with any ("conversation"), float64 scalar; it adds up over shards."""
    if how == "token":
        return mask.sum().double()
    if how == "conversation":
        return mask.any(dim=1).sum().double()
    raise ConfigurationError(f"aggregation is {how!r}; it has to be 'token' or 'conversation'")


class Surrogate(NamedTuple):
    """The clipped surrogate of each token and what to watch, [conversations, tokens]; only `loss` has a gradient."""

    loss: Tensor
    ratio: Tensor
    """`π(y)/π_old(y)`."""
    clipped: Tensor
    """1 if clipping or the dual clip took the token's gradient away."""
    kl: Tensor
    """k3 estimate of KL(π_old ‖ π) per token; its masked mean tells how far the update has gone."""

    def statistics(self, mask: Tensor, denominator: Tensor | float | None = None) -> dict[str, Tensor]:
        """`clip_fraction` and `approx_kl`, which add up over shards given the global token count, and `ratio_max`."""
        return {
            "clip_fraction": masked_mean(self.clipped, mask, "token", denominator),
            "approx_kl": masked_mean(self.kl, mask, "token", denominator),
            "ratio_max": torch.where(mask, self.ratio, 0.0).amax(),
        }


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Surrogate:
    """PPO's clipped objective (1707.06347 eq. 7) as a loss per token, `max(-r A, -clip(r, 1-low, 1+high) A)`.

    Different clips below and above as in DAPO (2503.14476); `dual_clip` c > 1 bounds the loss of tokens with A < 0 by
    `-c A` (1912.09729), which otherwise grows with the ratio without limit.

    logprobs (with gradient), old_logprobs, advantages: float [conversations, tokens], finite, zero if padded.
    Raises ConfigurationError for clips outside 0 <= clip_low < 1, clip_high >= 0, dual_clip > 1.
    """
    if not (0.0 <= clip_low < 1.0 and clip_high >= 0.0):
        raise ConfigurationError(f"clips are {clip_low} below, {clip_high} above; they need 0 <= low < 1 and high >= 0")
    if dual_clip is not None and dual_clip <= 1.0:
        raise ConfigurationError(f"dual_clip is {dual_clip}; it has to be above 1, or absent")
    advantages = advantages.detach()
    log_ratio = _bounded(logprobs - old_logprobs.detach())
    ratio = log_ratio.exp()
    free = -advantages * ratio
    held = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = torch.maximum(free, held)
    clipped = held > free
    if dual_clip is not None:
        ceiling = -advantages * dual_clip
        beyond = (advantages < 0) & (loss > ceiling)
        loss = torch.where(beyond, ceiling, loss)
        clipped = clipped | beyond
    kl = kl_estimate(old_logprobs.detach(), logprobs.detach(), "k3")
    return Surrogate(loss, ratio.detach(), clipped.to(loss.dtype), kl)


def reinforce_loss(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """`-A log π` per token; with a turn's advantage on all its tokens, the turn's `-A log π(a|s)` (2405.14655 §4.1).

    logprobs (with gradient), advantages: float [conversations, tokens]. Returns the same shape.
    """
    return -advantages.detach() * logprobs


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, kind: Literal["k1", "k2", "k3"]) -> Tensor:
    """Estimate of KL(π ‖ reference) per token on tokens that π sampled (Schulman 2020, "Approximating KL divergence").

    With `d = log π - log ref`: k1 = d, unbiased, either sign; k2 = d²/2, biased, and the one whose gradient is an
    unbiased gradient of the KL; k3 = e^{-d} - 1 + d, unbiased and never negative, bounded in d. As a loss k1 has zero
    expected gradient: it belongs into the reward.

    logprobs, reference_logprobs: float, one shape, the former with gradient where it is a loss. Returns that shape.
    """
    difference = logprobs - reference_logprobs
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference.square()
    if kind == "k3":
        bounded = _bounded(difference)
        return torch.expm1(-bounded) + bounded
    raise ConfigurationError(f"KL estimator is {kind!r}; it has to be 'k1', 'k2' or 'k3'")


@torch.no_grad()
def truncated_importance_weights(
    behaviour_logprobs: Tensor, learner_logprobs: Tensor, mask: Tensor, cap: float, level: Literal["token", "sequence"]
) -> Tensor:
    """`min(π_learner / π_behaviour, cap)`, the correction for tokens sampled by other weights or another engine.

    "token": each token's own ratio (low variance, biased); "sequence": the product over the row's agent tokens
    (unbiased before the cap, high variance), the same on each of them. Log-ratios are bounded before the exponential.

    behaviour_logprobs, learner_logprobs: float [conversations, tokens]; mask: bool, same shape; cap > 0.
    Returns float [conversations, tokens], zero outside the mask.
    """
    require_same_shape(mask, behaviour_logprobs=behaviour_logprobs, learner_logprobs=learner_logprobs)
    if cap <= 0:
        raise ConfigurationError(f"the cap of importance weights is {cap}; it has to be above 0")
    log_ratio = torch.where(mask, learner_logprobs - behaviour_logprobs, 0.0)
    if level == "sequence":
        log_ratio = log_ratio.sum(dim=1, keepdim=True).expand_as(mask)
    elif level != "token":
        raise ConfigurationError(f"the level of importance weights is {level!r}; it has to be 'token' or 'sequence'")
    return torch.where(mask, _bounded(log_ratio).exp().clamp_max(cap), 0.0)


def _bounded(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
