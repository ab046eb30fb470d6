"""Scalar models: a decoder with one linear output, evaluated at chosen positions.

The token critic is evaluated at the position *before* each response token, the state in which it was sampled. A response-level
Q of 2511.21638 §2.2 is evaluated at the response's *last* token: one number per (state, response).

All start from the policy's decoder; the head is initialised with zeros and computed in float32. Its output is `offset + scale
· linear`, so that a learning rate has the same effect for outcomes of 0 or 1 and of tens of thousands. Offset and scale follow
the targets, and the linear part changes against them, so that the model's predictions stay the same (PopArt, 1602.07714).

It is saved as a Hugging Face folder of the decoder, which `AutoModel` loads, with `value_head.safetensors` in the same folder.
"""

import copy
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from mtrl_ray.errors import CheckpointError
from mtrl_ray.models.inputs import ModelInputs, hidden_states
from mtrl_ray.models.policy import open_pretrained

HEAD_FILE = "value_head.safetensors"
FOLLOWING = 0.25
"""Share of the newest targets in the moments that offset and scale are computed from."""


class Head(nn.Linear):
    """A linear output in float32, in units of its targets."""

    offset: Tensor
    scale: Tensor

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__(width, 1, device=device)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self.register_buffer("offset", torch.zeros((), device=device))
        self.register_buffer("scale", torch.zeros((), device=device))

    @property
    def unit(self) -> float:
        """The scale of the output, 1 before `calibrate`; errors divided by it are comparable across environments."""
        return float(self.scale) or 1.0

    @torch.no_grad()
    def calibrate(self, mean: float, deviation: float) -> None:
        """Let offset and scale follow targets of this mean and deviation; the first ones that vary set them."""
        if not float(self.scale):
            if deviation > 0:
                self.offset.fill_(mean)
                self.scale.fill_(deviation)
            return
        before, unit = float(self.offset), self.unit
        after = before + FOLLOWING * (mean - before)
        square = (1 - FOLLOWING) * (unit**2 + before**2) + FOLLOWING * (deviation**2 + mean**2)
        scale = max(square - after**2, 0.0) ** 0.5
        if scale > 0:
            self.weight.mul_(unit / scale)
            self.bias.copy_((unit * self.bias + before - after) / scale)
            self.offset.fill_(after)
            self.scale.fill_(scale)

    def forward(self, states: Tensor) -> Tensor:
        """The output at each state, float32 [states]; states: [states, width] in any precision."""
        with torch.autocast(states.device.type, enabled=False):
            return self.offset + self.unit * super().forward(states.float())[:, 0]

    def save(self, folder: str | Path) -> None:
        """Write it into a model's folder."""
        save_file(self.state_dict(), Path(folder) / HEAD_FILE)

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote. Raises CheckpointError if it cannot."""
        try:
            self.load_state_dict(load_file(Path(folder) / HEAD_FILE, device=str(self.weight.device)))
        except (OSError, SafetensorError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"the value head in {str(folder)!r} cannot be read: {reason}") from error


class ValueModel(nn.Module):
    """A decoder and a linear head: one float32 value per chosen position."""

    outputs: ClassVar[tuple[str, ...]] = ("values",)

    def __init__(self, decoder: PreTrainedModel) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = Head(decoder.config.hidden_size, decoder.device)

    @classmethod
    def from_policy(cls, policy: PreTrainedModel) -> "ValueModel":
        """A value model whose decoder is a copy of the policy's current one."""
        decoder = copy.deepcopy(policy.base_model)
        decoder.requires_grad_(True)
        return cls(decoder)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device) -> "ValueModel":
        """Load a model that `save` wrote. Raises CheckpointError if it cannot be read."""
        model = cls(open_pretrained(AutoModel, folder, torch.float32)).to(device)
        model.head.load(folder)
        return model

    def save(self, folder: str | Path) -> None:
        """Write the decoder as a Hugging Face folder, and the head into the same folder."""
        self.decoder.save_pretrained(folder)
        self.head.save(folder)

    @property
    def unit(self) -> float:
        """See `Head.unit`."""
        return self.head.unit

    def calibrate(self, mean: float, deviation: float) -> None:
        """See `Head.calibrate`."""
        self.head.calibrate(mean, deviation)

    def forward(self, inputs: ModelInputs, slots: Tensor) -> dict[str, Tensor]:
        """`values` at the positions `slots` (int64 [reads] into the flattened rows), float32 [reads]."""
        return {"values": self.head(hidden_states(self.decoder, inputs).index_select(0, slots))}
