"""Seeded requests at full speed in vLLM on a CPU.

vLLM's CPU sampler draws one seed per request and token from the request's generator, a call into torch each; with a few
hundred small-model requests in flight that costs a third of the throughput. `SeedStreams` draws the same generator's
seeds in blocks, and `sample` hands them to the same fused Gumbel-argmax kernel. On GPUs vLLM's own path is left alone.
"""

from collections.abc import Iterator
from typing import Any

import torch

BLOCK = 64
"""Seeds drawn from a generator at once."""


class SeedStreams:
    """Blocks of seeds per generator; generators that are no longer in the batch are forgotten."""

    def __init__(self) -> None:
        self._streams: dict[torch.Generator, Iterator[int]] = {}

    def seeds(self, generators: dict[int, torch.Generator], rows: int) -> torch.Tensor:
        """One seed per row of the batch, int64 [rows]; rows without a generator draw from torch's default one."""
        if len(self._streams) > 4 * rows + BLOCK:
            present = set(generators.values())
            self._streams = {key: stream for key, stream in self._streams.items() if key in present}
        if len(generators) == rows:
            return torch.tensor([next(self._stream(generators[row])) for row in range(rows)])
        drawn: torch.Tensor = torch.randint(0, 2**31, (rows,))
        for row, generator in generators.items():
            drawn[row] = next(self._stream(generator))
        return drawn

    def _stream(self, generator: torch.Generator) -> Iterator[int]:
        stream = self._streams.get(generator)
        if stream is None:
            stream = self._streams[generator] = _blocks(generator)
        return stream


def _blocks(generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randint(0, 2**31, (BLOCK,), generator=generator).tolist()


def install(sampler: Any) -> None:
    """Give a vLLM `Sampler` on a CPU block-wise seeds. Left as it is if its layout is not the one known here."""
    inner = getattr(sampler, "topk_topp_sampler", None)
    kernel = getattr(torch.ops._C, "fused_gumbel_argmax", None)
    if inner is None or kernel is None or getattr(inner, "forward", None) != getattr(inner, "forward_cpu", 0):
        return
    original, streams = inner.forward, SeedStreams()

    def sample(
        logits: torch.Tensor,
        generators: dict[int, torch.Generator],
        k: torch.Tensor | None,
        p: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if k is not None or p is not None or inner.logprobs_mode != "processed_logprobs":
            return original(logits, generators, k, p)
        logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)
        return kernel(logits.float(), streams.seeds(generators, len(logits))), logprobs

    inner.forward = sample
