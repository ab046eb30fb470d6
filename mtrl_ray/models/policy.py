"""The policy: any causal language model of transformers, evaluated at chosen positions.

`load_policy` loads a Hugging Face folder (or a hub name) and refuses an incomplete one, because a tensor that the folder lacks
would otherwise be initialised randomly.

`PolicyReader` computes log-probabilities of given next tokens, and entropies. They are float32 for every model dtype, and
belong to the distribution that was sampled from: logits divided by the sampler's temperature. The decoder runs once over the
rows. The output layer runs only at the chosen positions, in chunks, so that `[positions, vocabulary]` never exceeds
`LOGIT_BUDGET` entries; chunks are recomputed in the backward pass. Models that process their logits after the linear layer
(soft caps, scaling) are detected by comparison, and their full logits are used.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from mtrl_ray.errors import CheckpointError, ConfigurationError
from mtrl_ray.models.inputs import ModelInputs, hidden_states

LOGIT_BUDGET = 2**25
"""Largest number of logits in memory at a time (128 MiB in float32)."""


@dataclass(frozen=True)
class ForwardOptions:
    """How a policy is evaluated: the sampler's temperature, and whether entropies carry a gradient."""

    temperature: float = 1.0
    entropy_gradient: bool = False


def load_policy(path: str | Path, dtype: str | torch.dtype = torch.float32) -> PreTrainedModel:
    """Load the causal language model at `path` (a folder or a hub name), in evaluation mode, without dropout.

    Raises CheckpointError if there is none or if it is incomplete.
    """
    return open_pretrained(AutoModelForCausalLM, path, dtype)


def open_pretrained(auto_class: Any, path: str | Path, dtype: str | torch.dtype) -> PreTrainedModel:
    """`auto_class.from_pretrained`; raises CheckpointError for failures and missing tensors."""
    disable_progress_bar()
    try:
        model, report = auto_class.from_pretrained(str(path), dtype=dtype, output_loading_info=True)
    except Exception as error:  # transformers, safetensors and huggingface_hub share no base class
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"no model can be loaded from {str(path)!r} ({type(error).__name__}: {reason})"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(f"the model at {str(path)!r} lacks {len(missing)} tensors, including {missing[0]!r}")
    return model.eval()


class PolicyReader(nn.Module):
    """Evaluates a causal language model at chosen positions; `temperature` is the sampler's."""

    outputs: ClassVar[tuple[str, ...]] = ("logprobs", "entropies")

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.linear_head = _head_is_linear(model)

    @property
    def decoder(self) -> nn.Module:
        """The model without its output layer."""
        decoder: nn.Module = self.model.base_model
        return decoder

    def forward(
        self,
        inputs: ModelInputs,
        slots: Tensor,
        targets: Tensor,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
    ) -> dict[str, Tensor]:
        """`logprobs` of the tokens `targets` after the positions `slots`, and `entropies` there, float32 [reads] each.

        slots: int64 [reads] into the flattened `[rows * slots]` of `inputs`; targets: int64 [reads]. Entropies have a
        gradient if `entropy_gradient` is set. Raises ConfigurationError for a temperature that is not above 0.
        """
        states = self.states(inputs, slots) if self.linear_head else None
        return self.read(inputs, slots, states, targets, temperature, entropy_gradient)

    @property
    def width(self) -> int:
        """Of the hidden states."""
        width: int = self.model.config.get_text_config().hidden_size
        return width

    def states(self, inputs: ModelInputs, slots: Tensor) -> Tensor:
        """The decoder's last hidden states at the slots, float [reads, width]."""
        return hidden_states(self.decoder, inputs).index_select(0, slots)

    def read(
        self,
        inputs: ModelInputs,
        slots: Tensor,
        states: Tensor | None,
        targets: Tensor,
        temperature: float,
        entropy_gradient: bool,
    ) -> dict[str, Tensor]:
        """`forward`, given what `states` returned; a model without a linear head needs another pass and does not read them."""
        if temperature <= 0:
            raise ConfigurationError(f"temperature is {temperature}; it has to be above 0")
        if self.linear_head and states is not None:
            head = self.model.get_output_embeddings()
        else:
            states, head = self._all_logits(inputs).index_select(0, slots), nn.Identity()
        chunk = max(1, LOGIT_BUDGET // self.model.config.vocab_size)
        if len(targets) <= chunk:
            logprobs, entropies = _read(head, states, targets, temperature, entropy_gradient)
            return {"logprobs": logprobs, "entropies": entropies}
        parts = [
            checkpoint(_read, head, *part, temperature, entropy_gradient, use_reentrant=False, preserve_rng_state=False)
            for part in zip(states.split(chunk), targets.split(chunk), strict=True)
        ]
        logprobs, entropies = (torch.cat(values) for values in zip(*parts, strict=True))
        return {"logprobs": logprobs, "entropies": entropies}

    def _all_logits(self, inputs: ModelInputs) -> Tensor:
        """The model's logits, float [rows * slots, vocabulary]."""
        arguments = {} if inputs.mask is None else {"attention_mask": inputs.mask, "position_ids": inputs.positions}
        logits: Tensor = self.model(input_ids=inputs.tokens, use_cache=False, **arguments).logits
        return logits.flatten(0, 1)


def _read(
    head: nn.Module, states: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    logits = head(states).float()
    if temperature != 1.0:
        logits = logits / temperature
    logprobs = logits.log_softmax(dim=-1)
    chosen = logprobs.gather(1, targets[:, None])[:, 0]
    spread = logprobs if entropy_gradient else logprobs.detach()
    return chosen, -(spread.exp() * spread).sum(dim=-1)


@torch.no_grad()
def _head_is_linear(model: PreTrainedModel) -> bool:
    """Whether the logits are exactly the output layer applied to the decoder's hidden states."""
    head = model.get_output_embeddings()
    if head is None:
        return False
    inputs = ModelInputs(torch.arange(1, 5, device=model.device)[None] % model.config.vocab_size)
    logits = model(input_ids=inputs.tokens, use_cache=False).logits.flatten(0, 1).float()
    plain = head(hidden_states(model.base_model, inputs)).float()
    return bool(torch.allclose(plain, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max())))
