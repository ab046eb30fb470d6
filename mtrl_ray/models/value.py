"""Scalar models: a decoder with one linear output, evaluated at chosen positions.

1. The token critic is evaluated at the position *before* each response token: the state in which it was sampled.
2. The response-level Q of 2511.21638 §2.2 is evaluated at the response's *last* token: one number per (state, response).
3. Both start from the policy's decoder; the head is initialised with zeros and computed in float32. The output is
   `offset + scale · head`, both set once from the first targets (`calibrate`), so that a learning rate has the
   same effect for outcomes of 0 or 1 and of tens of thousands.
4. It is saved as a Hugging Face folder of the decoder, which `AutoModel` loads, with
   `value_head.safetensors` in the same folder.
"""

import copy
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from mtrl_ray.errors import CheckpointError
from mtrl_ray.models.inputs import ModelInputs, hidden_states
from mtrl_ray.models.policy import open_pretrained

HEAD_FILE = "value_head.safetensors"


class ValueModel(nn.Module):
    """A decoder and a linear head: one float32 value per chosen position."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = nn.Linear(decoder.config.hidden_size, 1, device=decoder.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.offset: Tensor
        self.scale: Tensor
        self.register_buffer("offset", torch.zeros((), device=decoder.device))
        self.register_buffer("scale", torch.zeros((), device=decoder.device))

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
        try:
            head = load_file(Path(folder) / HEAD_FILE, device=str(device))
            model.head.load_state_dict({"weight": head["weight"], "bias": head["bias"]})
            model.offset.copy_(head["offset"])
            model.scale.copy_(head["scale"])
        except (OSError, SafetensorError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"the value head in {str(folder)!r} cannot be read: {reason}") from error
        return model

    def save(self, folder: str | Path) -> None:
        """Write the decoder as a Hugging Face folder, and the head into the same folder."""
        self.decoder.save_pretrained(folder)
        tensors = {**self.head.state_dict(), "offset": self.offset, "scale": self.scale}
        save_file(tensors, Path(folder) / HEAD_FILE)

    @property
    def unit(self) -> float:
        """The scale of the output, 1 before `calibrate`; errors divided by it are comparable across environments."""
        return float(self.scale) or 1.0

    def calibrate(self, mean: float, deviation: float) -> None:
        """Set offset and scale from the first targets that vary; later calls have no effect."""
        if not float(self.scale) and deviation > 0:
            self.offset.fill_(mean)
            self.scale.fill_(deviation)

    def forward(self, inputs: ModelInputs, slots: Tensor) -> dict[str, Tensor]:
        """`values` at the positions `slots` (int64 [reads] into the flattened rows), float32 [reads]."""
        states = hidden_states(self.decoder, inputs).index_select(0, slots)
        with torch.autocast(states.device.type, enabled=False):
            return {"values": self.offset + self.unit * self.head(states.float())[:, 0]}
