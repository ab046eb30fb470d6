"""The geometric mixture of policy and reference inside vLLM: π^τ ∝ π^(1-τ) μ^τ, token by token (2405.14655 §3).

vLLM runs one model that holds two, `policy` and `reference`, each with attention layers of its own. Both read every token, and
vLLM's paged cache, prefix cache and batching serve both alike. Hidden states travel side by side.

`compute_logits` gives the policy's logits and keeps the reference's. `Mixing`, a logits processor, interpolates the rows whose
requests ask for it: `(1-τ) z_π + τ z_μ`, before the temperature. A request with τ = 0 is the policy's alone. Weights that
arrive later are the policy's; the reference keeps the model folder's weights.

Imported only if vLLM is installed.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from vllm import ModelRegistry
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

ARCHITECTURE = "PolicyAndReferenceForCausalLM"
SHARE = "mixture"
"""Key of τ among a request's extra arguments."""


class PolicyAndReferenceForCausalLM(nn.Module):
    """See the module's docstring."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        architectures = vllm_config.model_config.hf_config.mixture_of

        def copy(name: str) -> nn.Module:
            inner = maybe_prefix(prefix, name)
            return init_vllm_registered_model(vllm_config=vllm_config, prefix=inner, architectures=architectures)

        self.policy, self.reference = copy("policy"), copy("reference")
        self.reference_logits: Tensor | None = None
        self._reference_loaded = False

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """The policy's embeddings; vLLM asks every model for them."""
        return self.policy.embed_input_ids(input_ids)

    def forward(
        self, input_ids: Tensor, positions: Tensor, intermediate_tensors: Any = None, inputs_embeds: Any = None
    ) -> Tensor:
        """Hidden states of both, [tokens, 2 · width]."""
        return torch.cat([model(input_ids, positions) for model in (self.policy, self.reference)], dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """The policy's logits, [rows, vocabulary]; the reference's are kept for `Mixing`."""
        own, other = hidden_states.chunk(2, dim=-1)
        self.reference_logits = self.reference.compute_logits(other.contiguous())
        return self.policy.compute_logits(own.contiguous())

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Rule 3: the first time both take them, later the policy alone. Gives the parameters' names."""
        given = list(weights)
        loaded = {f"policy.{name}" for name in self.policy.load_weights(iter(given))}
        if not self._reference_loaded:
            loaded |= {f"reference.{name}" for name in self.reference.load_weights(iter(given))}
            self._reference_loaded = True
        return loaded


class Mixing(LogitsProcessor):
    """Interpolates the logits of requests whose `extra_args` have a share of the reference."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._shares: dict[int, float] = {}  # row of the batch: τ
        self.model: PolicyAndReferenceForCausalLM | None = None

    def is_argmax_invariant(self) -> bool:
        """The most likely token may change."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the requests through the batch."""
        process_dict_updates(self._shares, batch_update, lambda params, *_: (params.extra_args or {}).get(SHARE))

    def apply(self, logits: Tensor) -> Tensor:
        """logits: float [rows, vocabulary], changed in place."""
        if not self._shares:
            return logits
        if self.model is None or self.model.reference_logits is None:
            raise RuntimeError("a request asks for a mixture, and the reference has given no logits")
        rows = torch.tensor(list(self._shares), device=logits.device)
        shares = torch.tensor(list(self._shares.values()), device=logits.device, dtype=logits.dtype)[:, None]
        others = self.model.reference_logits[rows].to(logits.dtype)
        logits[rows] = torch.lerp(logits[rows], others, shares)
        return logits


def arguments(path: str) -> dict[str, Any]:
    """Of `vllm.LLM`, to run the model at `path` as policy and reference at once."""
    ModelRegistry.register_model(ARCHITECTURE, PolicyAndReferenceForCausalLM)
    inner = AutoConfig.from_pretrained(path).architectures
    return {
        "hf_overrides": {"architectures": [ARCHITECTURE], "mixture_of": inner},
        "logits_processors": [Mixing],
    }


def connect(worker: Any) -> None:
    """Show the worker's `Mixing` the model whose reference it reads."""
    processors = worker.model_runner.input_batch.logitsprocs.non_argmax_invariant
    next(one for one in processors if isinstance(one, Mixing)).model = worker.get_model()
