"""The seam between dialogues and a sampler: token ids in, token ids with log-probabilities out.

1. `submit` never blocks; `step` does one unit of sampling for everything in flight and returns what finished.
2. A request's seed decides its samples, whatever else is in flight and on whichever worker; what else is in flight may
   change the last bits of their log-probabilities (`rollout.chunks`).
3. Log-probabilities are those of the distribution that was sampled (temperature included), in float32.
4. `load_weights` is called between steps. What is in flight goes on under the new weights, its history computed again;
   every token carries the version it was sampled under.
5. A request may ask for the geometric mixture π^(1-τ) μ^τ, normalised per token, of the policy and the reference; its
   log-probabilities are then the mixture's. The reference has the weights of version 0 for ever, and is there where
   `rollout.reference` is set.
"""

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mtrl_ray.dialogue.conversation import Finish
from mtrl_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from mtrl_ray.settings.tree import ModelSettings, RolloutSettings


@dataclass(frozen=True)
class Request:
    """One response to sample after `prompt` (token ids). `seed` in [0, 2**63); `max_tokens` >= 1; `mixture`: τ in [0, 1]."""

    id: str
    prompt: list[int]
    seed: int
    max_tokens: int
    temperature: float = 1.0
    mixture: float = 0.0


@dataclass(frozen=True)
class Generation:
    """A finished response: sampled ids (the stop token included), their log-probabilities and weight versions."""

    id: str
    tokens: list[int]
    logprobs: list[float]
    versions: list[int]
    finish: Finish


class Engine(Protocol):
    """A sampler. Not thread-safe: one thread submits, steps and loads."""

    version: int

    def submit(self, request: Request) -> None:
        """Take a request. The prompt has to leave room for `max_tokens` in the model's context."""

    def step(self) -> list[Generation]:
        """Advance everything in flight; the responses that finished. Raises EngineError."""

    def abort(self, ids: Iterable[str]) -> None:
        """Forget these requests; unknown ids are ignored."""

    @property
    def in_flight(self) -> int:
        """Requests submitted and not finished."""

    def load_weights(self, weights: Iterator[tuple[str, Any]], version: int) -> None:
        """Replace the weights: (checkpoint name, tensor) pairs. Raises EngineError where a name or shape does not fit."""

    def reset_cache(self) -> None:
        """Forget cached prefixes, so that what follows is computed anew."""

    def close(self) -> None:
        """Free what the engine holds."""


def require_reference(request: Request, there: bool) -> None:
    """Raises ConfigurationError for a request of a mixture where no reference is held."""
    if request.mixture and not there:
        raise ConfigurationError(
            f"request {request.id!r} asks for a mixture with the reference, which this engine does not hold; set "
            "rollout.reference: true"
        )


def engine_name(wanted: str) -> str:
    """`vllm` or `huggingface` for a `rollout.engine` setting. Raises ConfigurationError where vLLM is asked for and absent."""
    installed = importlib.util.find_spec("vllm") is not None
    if wanted == "vllm" and not installed:
        raise ConfigurationError(
            "rollout.engine is 'vllm', but vllm is not installed; install the extra mtrl-ray[cpu] or mtrl-ray[gpu], "
            "or use rollout.engine=huggingface"
        )
    if wanted == "auto":
        return "vllm" if installed else "huggingface"
    return wanted


def make_engine(path: str, stop_ids: tuple[int, ...], rollout: "RolloutSettings", model: "ModelSettings") -> Engine:
    """The engine that the settings ask for, with the weights of a Hugging Face folder or hub name as version 0."""
    if engine_name(rollout.engine) == "vllm":
        from mtrl_ray.rollout.vllm_engine import VllmEngine

        return VllmEngine(path, stop_ids, rollout, model)
    from mtrl_ray.rollout.huggingface_engine import HuggingFaceEngine

    return HuggingFaceEngine(path, stop_ids, rollout, model)
