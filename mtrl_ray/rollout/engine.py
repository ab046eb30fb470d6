"""The interface between dialogues and a sampler: token ids in, token ids with log-probabilities out.

- `submit` never blocks; `step` does one unit of sampling for everything in flight and returns what finished.
- A request's seed decides its samples, on any worker and whatever else is in flight. What else is in flight may change the
  last bits of their log-probabilities (`rollout.chunks`).
- Log-probabilities are float32 and belong to the distribution that was sampled, temperature included.
- `load_weights` is called between steps. What is in flight continues under the new weights, and its history is computed again.
  Every token carries the version it was sampled under.
- A request may ask for the geometric mixture π^(1-τ) μ^τ, normalised per token, of the policy and the reference; its
  log-probabilities are then the mixture's. The reference always has the weights of version 0, and exists only if
  `rollout.reference` is set.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from mtrl_ray.dialogue.conversation import Finish
from mtrl_ray.errors import ConfigurationError


@dataclass(frozen=True)
class SampleRequest:
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
    progress: int
    """A number that changes with every sampled token, within a long `step` too if the engine can; any thread may read it."""

    def submit(self, request: SampleRequest) -> None:
        """Take a request. The prompt has to leave room for `max_tokens` in the model's context."""

    def step(self) -> list[Generation]:
        """Advance everything in flight; the responses that finished. Raises EngineError."""

    def abort(self, ids: Iterable[str]) -> None:
        """Forget these requests; unknown ids are ignored."""

    @property
    def in_flight(self) -> int:
        """Requests submitted and not finished."""

    def load_weights(self, weights: Iterator[tuple[str, Any]], version: int) -> None:
        """Replace the weights: (checkpoint name, tensor) pairs. Raises EngineError if a name or shape does not fit."""

    def reset_cache(self) -> None:
        """Forget cached prefixes, so that what follows is computed anew."""

    def close(self) -> None:
        """Free the engine's resources."""


def require_reference(request: SampleRequest, there: bool) -> None:
    """Raises ConfigurationError for a request of a mixture if the engine holds no reference."""
    if request.mixture and not there:
        raise ConfigurationError(
            f"request {request.id!r} asks for a mixture with the reference, which this engine does not hold; set "
            "rollout.reference: true"
        )
