"""One version of a model's weights in one contiguous buffer: a single object to store, send and map.

`pack` copies every tensor once, from any device, to a multiple of `ALIGNMENT` bytes. Tensors that share memory (tied
embeddings) are packed once, under the first of their names; loaders tie them again. `unpack` gives views of the buffer, which
can be read-only memory of Ray's object store: copy them before writing.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtrl_ray.errors import CheckpointError

ALIGNMENT = 64


@dataclass(frozen=True)
class PackedWeights:
    """`names`, `shapes`, `dtypes` (torch's names) and `offsets` (bytes) describe `buffer`, uint8 [bytes]."""

    version: int
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    offsets: tuple[int, ...]
    buffer: np.ndarray

    @property
    def nbytes(self) -> int:
        """Size of the buffer."""
        return int(self.buffer.nbytes)


@torch.no_grad()
def pack(state: Mapping[str, Tensor], version: int = 0, dtype: torch.dtype | None = None) -> PackedWeights:
    """Pack the tensors of `state` into one buffer; floating-point ones are converted to `dtype` if it is given."""
    chosen = {name: (tensor, _dtype(tensor, dtype)) for name, tensor in _distinct(state).items()}
    sizes = [tensor.numel() * kind.itemsize for tensor, kind in chosen.values()]
    steps = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
    offsets = np.concatenate([[0], np.cumsum(steps, dtype=np.int64)])
    buffer = torch.zeros(int(offsets[-1]), dtype=torch.uint8)
    for (tensor, kind), offset, size in zip(chosen.values(), offsets, sizes, strict=False):
        if size:
            buffer[offset : offset + size].view(kind).view(tensor.shape).copy_(tensor.detach())
    return PackedWeights(
        version,
        tuple(chosen),
        tuple(tuple(tensor.shape) for tensor, _ in chosen.values()),
        tuple(str(kind).removeprefix("torch.") for _, kind in chosen.values()),
        tuple(int(offset) for offset in offsets[:-1]),
        buffer.numpy(),
    )


def unpack(packed: PackedWeights) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) pairs; the tensors are views of the buffer.

    Raises CheckpointError if the buffer is shorter than its description says.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        memory = torch.from_numpy(packed.buffer)
    for name, shape, dtype, offset in zip(packed.names, packed.shapes, packed.dtypes, packed.offsets, strict=True):
        kind = getattr(torch, dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        end = offset + size
        if end > packed.nbytes:
            raise CheckpointError(
                f"packed weights of version {packed.version} end at byte {packed.nbytes}; {name!r} needs {end}"
            )
        yield name, memory[offset:end].view(kind).view(shape) if size else torch.empty(shape, dtype=kind)


def _distinct(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the tensors that share the memory of an earlier one."""
    seen: set[tuple[object, ...]] = set()
    kept = {}
    for name, tensor in state.items():
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() == 0 or key not in seen:
            kept[name] = tensor
        seen.add(key)
    return kept


def _dtype(tensor: Tensor, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted is not None and tensor.is_floating_point() else tensor.dtype
