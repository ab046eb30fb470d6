"""Inputs of a decoder: rows of token ids and, if rows branch, the attention mask.

- Chains (rows without branches) are padded on the right and have neither mask nor position ids: a causal model never attends
  to the padding, and attention uses its causal fast path.
- Trees have a boolean mask `[rows, 1, slots, slots]`, which transformers passes to the attention layers unchanged, and
  position ids that count from the root along each branch.
- Not every model supports trees: a recurrent layer carries its state past a branch, a sliding window counts slots instead of
  positions, some attention kernels accept no mask. `reads_trees` tests a model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelInputs:
    """One micro-batch. `tokens`, `positions`: int64 [rows, slots]; `mask`: bool [rows, 1, slots, slots].

    `mask` and `positions` are both None for chains.
    """

    tokens: Tensor
    mask: Tensor | None = None
    positions: Tensor | None = None


def hidden_states(decoder: nn.Module, inputs: ModelInputs) -> Tensor:
    """The decoder's last hidden states, float [rows * slots, width]."""
    arguments = {"input_ids": inputs.tokens, "use_cache": False}
    if inputs.mask is not None:
        arguments |= {"attention_mask": inputs.mask, "position_ids": inputs.positions}
    states: Tensor = decoder(**arguments).last_hidden_state
    return states.flatten(0, 1)


@torch.no_grad()
def reads_trees(decoder: nn.Module, device: torch.device) -> bool:
    """Whether a branch has the same hidden states as the same tokens in a separate sequence.

    Tested on a trunk of four tokens with two branches of two. False for models with a sliding window, without a test,
    because the window can be longer than the test.
    """
    config = decoder.config
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    trunk, branches = [1, 2, 3, 4], ([5, 6], [7, 8])
    branch = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2], device=device)
    slot = torch.arange(8, device=device)
    mask = (slot[:, None] >= slot) & ((branch == 0) | (branch[:, None] == branch))
    tree = ModelInputs(
        torch.tensor([trunk + branches[0] + branches[1]], device=device) % config.vocab_size,
        mask[None, None],
        torch.tensor([[0, 1, 2, 3, 4, 5, 4, 5]], device=device),
    )
    chain = ModelInputs(torch.tensor([trunk + branches[1]], device=device) % config.vocab_size)
    try:
        together = hidden_states(decoder, tree)[6:]
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    alone = hidden_states(decoder, chain)[4:]
    return bool(torch.allclose(together.float(), alone.float(), rtol=1e-2, atol=1e-3 * float(alone.abs().max())))
