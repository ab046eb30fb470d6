"""Rewards of a conversation that ends with one number and pays for its distance to a reference (2405.14655 §3, §4.1).

With V(s_{H+1}) the terminal reward, `Q(s, a) = E[V(s')] - α KL(π‖μ)[s]` and `V(s) = E_π Q(s, ·)`:

1. The KL of a state is a constant of the action taken there, so the advantage is `E[V(s')] - U(s)` with
   `U(s) = V(s) + α KL(π‖μ)[s]`. U is the value of rewards on arrival: each action's reward is what the *next* state's KL
   costs, the last one's is the terminal reward (`on_arrival`). The first state's KL does not depend on any action.
2. What an action's own KL costs is in the policy's loss, `-Â log π(a|s) + α KL(π‖μ)[s]`. Were the sampled
   `log π(a|s)/μ(a|s)` in the advantage as well it would be counted twice, because `E[∇log π · log π/μ] = ∇KL`.
3. An action is a whole response; the loss has the KL of each of its tokens, given those before. What a token does to the
   KL of the tokens after it in the same response is the rest of `∇KL(π‖μ)[s]`, and belongs to its advantage
   (`later_in_turn`).

The KL is sampled, `log π(y) - log μ(y)` with π the policy that sampled: for MTPO-τ, the mixture. Rows are conversations,
columns are agent turns or agent tokens without gaps: a row's True entries come first.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from mtrl_ray.objectives.advantages import broadcast_turns
from mtrl_ray.objectives.returns import discounted_sums, require_same_shape
from mtrl_ray.objectives.turn_rewards import on_last_turn, turn_sums


@torch.no_grad()
def on_arrival(terminal: Tensor, divergence: Tensor, present: Tensor, alpha: float) -> Tensor:
    """`r_h = -α KL_{h+1}`, and the terminal reward with the last action.

    terminal: float [conversations]; divergence: float [conversations, actions], the sampled KL of each action (a turn's
    sum, or a token's own); present: bool, same shape. Returns that shape, zero if there is no action.
    """
    require_same_shape(present, divergence=divergence)
    paid = torch.where(present, divergence, 0.0)
    return on_last_turn(terminal, present) - alpha * following(paid)


@torch.no_grad()
def later_in_turn(divergence: Tensor, turn_index: Tensor, mask: Tensor, turns: int) -> Tensor:
    """The sampled KL of the tokens after each token in its own turn, [conversations, tokens], zero outside the mask.

    divergence: float [conversations, tokens]; turn_index: int64, mask: bool, same shape; turns: most of a conversation.
    """
    require_same_shape(mask, divergence=divergence, turn_index=turn_index)
    after = following(discounted_sums(divergence, mask, 1.0))
    per_turn = turn_sums(divergence, turn_index, mask, turns)
    from_next_turn = following(discounted_sums(per_turn, torch.ones_like(per_turn, dtype=torch.bool), 1.0))
    return torch.where(mask, after - broadcast_turns(from_next_turn, turn_index, mask), 0.0)


def following(x: Tensor) -> Tensor:
    """Each entry's right neighbour, zero after the last column."""
    return pad(x[:, 1:], (0, 1)) if x.shape[1] else x
