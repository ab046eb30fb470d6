"""Returns and regression targets on the agent's turns or tokens of padded, interleaved conversations.

1. Rows are conversations, columns are turns or tokens; `mask` is True if the entry is the agent's. Entries outside
   the mask (user spans, padding) take no part: nothing is read there, no discount is charged there, and results are
   zero there. Two agent entries with a user span between them are neighbours.
2. Rewards are on arrival: `rewards[i, j]` came with the state that followed turn `j`, so `Q(s, a) = E[R(s') + γ V(s')]`
   (2511.21638 §2.1-2.2).
3. The last agent entry of a row is terminal: nothing follows it, and its target is its reward. A conversation that was
   cut rather than ended passes `bootstrap_last`, the value of what would have followed (zero for the rows that ended).
4. All recursions are one reverse scan `y_j = x_j + c y_{j+1}`: masked entries are moved to the left, then blocks of
   `BLOCK` columns are multiplied with the triangular matrix of powers of `c`, and the blocks' heads are scanned by the
   same rule. It is computed in float64, which neither TF32 nor autocast touches, and returned in the inputs' dtype.

Targets carry no gradient.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from mtrl_ray.errors import ConfigurationError

BLOCK = 64
"""Columns per triangular product; the cost is linear in it, the number of blocks to carry through inverse."""


@torch.no_grad()
def discounted_sums(x: Tensor, mask: Tensor, discount: float) -> Tensor:
    """`y_j = Σ_k discount^k x_{j+k}` over the masked entries of each row, the k-th next one of the mask counting as k.

    x: float [conversations, turns or tokens]; mask: bool, same shape. Returns the same shape and dtype, zero outside
    the mask. With `discount` 1 it is the reverse cumulative sum. Raises ConfigurationError if it is outside [0, 1].
    """
    require_same_shape(mask, x=x)
    require_unit_interval(discount=discount)
    order = Compaction(mask)
    return order.spread(_reverse_scan(order.cut(order.left(x)), discount)).to(x.dtype)


def monte_carlo_returns(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Monte Carlo returns `G_j = Σ_k γ^k r_{j+k}`: targets of Q on the policy's own conversations (2511.21638 §2.2).

    rewards: float [conversations, turns], on arrival after each agent turn; mask: bool, same shape; gamma per agent
    turn, in [0, 1]. Returns float [conversations, turns], zero outside the mask.
    """
    return discounted_sums(rewards, mask, gamma)


@torch.no_grad()
def td_lambda_targets(
    rewards: Tensor, q: Tensor, mask: Tensor, gamma: float, lam: float, bootstrap_last: Tensor | float | None = None
) -> Tensor:
    """TD(λ) targets of Q along logged pairs, `G_j = r_j + γ [(1-λ) Q(s_{j+1}, a_{j+1}) + λ G_{j+1}]`.

    λ = 0 is SARSA, `r + γ Q(s', a')`; with λ = 1 `q` has no weight left: Monte Carlo returns.

    rewards, q: float [conversations, turns], `q[i, j]` the (target) network's estimate for the logged pair of turn j;
    mask: bool, same shape; gamma, lam in [0, 1]; bootstrap_last: float [conversations] (or one number), the value after
    each row's last turn, None if every conversation ended (its last target is then its reward alone).
    Returns float [conversations, turns], zero outside the mask.
    """
    require_same_shape(mask, rewards=rewards, q=q)
    require_unit_interval(gamma=gamma, lam=lam)
    order = Compaction(mask)
    following = pad(order.left(q)[:, 1:], (0, min(order.width, 1))) * (1.0 - lam)
    following = torch.where(order.is_last, _last(bootstrap_last, mask), following)
    sources = torch.add(order.left(rewards), following, alpha=gamma)
    return order.spread(_reverse_scan(order.cut(sources), gamma * lam)).to(torch.result_type(rewards, q))


@torch.no_grad()
def expected_backup_targets(
    rewards: Tensor, v_next: Tensor, mask: Tensor, gamma: float, bootstrap_last: Tensor | float | None = None
) -> Tensor:
    """Expected SARSA targets `r_j + γ V(s_{j+1})`, for conversations held by another policy than the one evaluated.

    rewards: float [conversations, turns]; v_next: float, same shape, `v_next[i, j]` the mean of Q over responses
    sampled from the evaluated policy in the state *after* turn j. After a row's last turn there is no such state:
    v_next is not read there, `bootstrap_last` (float [conversations] or one number; None: zero) takes its place.
    mask: bool, same shape; gamma in [0, 1]. Returns float [conversations, turns], zero outside the mask.
    """
    require_same_shape(mask, rewards=rewards, v_next=v_next)
    require_unit_interval(gamma=gamma)
    order = Compaction(mask)
    following = torch.where(order.is_last, _last(bootstrap_last, mask), order.left(v_next))
    targets = torch.add(order.left(rewards), following, alpha=gamma)
    return order.spread(targets).to(torch.result_type(rewards, v_next))


class Compaction:
    """Masked entries of each row moved to the left, in order, and back.

    mask: bool [rows, columns]. `width` is the largest number of masked entries of a row; `is_last` (bool [rows, width])
    marks each row's last one.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        count = mask.cumsum(dim=1)
        self.rank = (count - 1).clamp_min_(0)
        lengths = count[:, -1] if mask.shape[1] else count.sum(dim=1)
        self.width = int(lengths.max()) if lengths.numel() else 0
        columns = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        slots = torch.where(mask, self.rank, self.width)  # what is not masked shares one slot, which is then cut off
        self.source = columns.new_zeros(mask.shape[0], self.width + 1).scatter_(1, slots, columns)[:, : self.width]
        position = torch.arange(self.width, device=mask.device)
        self.empty = position >= lengths[:, None]
        self.is_last = position == lengths[:, None] - 1

    def left(self, x: Tensor) -> Tensor:
        """[rows, columns] to float64 [rows, width]; what lies to the right of a row's entries means nothing."""
        return x.gather(1, self.source).double()

    def cut(self, compact: Tensor) -> Tensor:
        """Zeros to the right of each row's entries."""
        return compact.masked_fill(self.empty, 0.0)

    def spread(self, compact: Tensor) -> Tensor:
        """[rows, width] to [rows, columns], zero outside the mask."""
        if self.width == 0:
            return compact.new_zeros(self.mask.shape)
        return compact.gather(1, self.rank).masked_fill(~self.mask, 0.0)


def _last(value: Tensor | float | None, mask: Tensor) -> Tensor:
    """The value after each row's last entry, float64 [rows, 1]."""
    last = torch.as_tensor(0.0 if value is None else value, dtype=torch.float64, device=mask.device)
    if last.ndim and last.shape != mask.shape[:1]:
        raise ValueError(
            f"the value after the last entry has shape {list(last.shape)}; it takes one number or [{mask.shape[0]}]"
        )
    return last.expand(mask.shape[0])[:, None]


def _reverse_scan(x: Tensor, discount: float) -> Tensor:
    """`y_j = x_j + discount * y_{j+1}` along the columns of x, float64 [rows, columns]."""
    rows, columns = x.shape
    if columns <= BLOCK:
        return x @ _powers(discount, x.device)[:columns, :columns]
    blocks = pad(x, (0, -columns % BLOCK)).view(rows, -1, BLOCK)
    within = blocks @ _powers(discount, x.device)
    heads = _reverse_scan(within[:, :, 0], discount**BLOCK)
    following = pad(heads[:, 1:], (0, 1))
    decay = discount ** torch.arange(BLOCK, 0, -1, dtype=torch.float64, device=x.device)
    return torch.addcmul(within, following[:, :, None], decay).view(rows, -1)[:, :columns]


@lru_cache(maxsize=16)
def _powers(discount: float, device: torch.device) -> Tensor:
    """Triangular [BLOCK, BLOCK] with `discount^(row - column)` on and below the diagonal, 0^0 being 1."""
    position = torch.arange(BLOCK, dtype=torch.float64, device=device)
    exponent = position[:, None] - position[None, :]
    return torch.where(exponent >= 0, discount ** exponent.clamp_min(0), 0.0)


def require_same_shape(mask: Tensor, **tensors: Tensor) -> None:
    """Raises ValueError unless mask is a bool matrix and every named tensor has its shape: broadcasting hides slips."""
    if mask.dtype != torch.bool or mask.ndim != 2:
        raise ValueError(f"mask is {mask.dtype} {list(mask.shape)}; it has to be bool [conversations, turns or tokens]")
    for name, tensor in tensors.items():
        if tensor.shape != mask.shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it has to be the mask's {list(mask.shape)}")


def require_unit_interval(**values: float) -> None:
    """Raises ConfigurationError naming the first value outside [0, 1]."""
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ConfigurationError(f"{name} is {value}; it has to lie in [0, 1]")
