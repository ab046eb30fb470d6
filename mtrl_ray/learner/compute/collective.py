"""Communication between the learner processes, which is sums only.

With one process torch.distributed is not needed: the base class `Collective` leaves tensors as they are. `join` makes the
group: rank 0 listens on a free port of its node, and the others get its address. It uses gloo on CPUs and NCCL on GPUs. Every
operation has a deadline; a dead partner raises EngineError instead of hanging. All processes call the same operations in the
same order, on tensors of the same shape.
"""

from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mtrl_ray.errors import EngineError


class Collective:
    """The communication of a process with its partners; this base class has no partners."""

    rank = 0
    world = 1

    def add(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over all processes, in place. Raises EngineError if a partner is gone."""

    def merge(self, values: np.ndarray) -> np.ndarray:
        """The sum over all processes of an array in which each process filled its own part, float32."""
        return values

    def any(self, flag: bool) -> bool:
        """Whether any process raised the flag."""
        return flag

    def close(self) -> None:
        """Leave the group."""


class ProcessGroup(Collective):
    """torch.distributed's default group."""

    def __init__(self, rank: int, world: int, device: torch.device) -> None:
        self.rank, self.world, self._device = rank, world, device

    def add(self, tensor: Tensor) -> None:
        """See `Collective.add`."""
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise EngineError(f"learner {self.rank} of {self.world} lost its partners in a sum: {reason}") from error

    def merge(self, values: np.ndarray) -> np.ndarray:
        """See `Collective.merge`."""
        tensor = torch.from_numpy(np.ascontiguousarray(values)).to(self._device)
        self.add(tensor)
        return tensor.cpu().numpy()

    def any(self, flag: bool) -> bool:
        """See `Collective.any`."""
        return bool(self.merge(np.array([flag], dtype=np.float32))[0])

    def close(self) -> None:
        """See `Collective.close`."""
        if dist.is_initialized():
            dist.destroy_process_group()


def listen(host: str, world: int, seconds: float) -> dist.TCPStore:
    """Rank 0's meeting point on a free port of `host` (`store.port`)."""
    return dist.TCPStore(host, 0, world, is_master=True, timeout=timedelta(seconds=seconds), wait_for_workers=False)


def connect(host: str, port: int, world: int, seconds: float) -> dist.TCPStore:
    """Another rank's way to rank 0's meeting point. Raises EngineError if nobody listens."""
    try:
        return dist.TCPStore(host, port, world, is_master=False, timeout=timedelta(seconds=seconds))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise EngineError(f"no learner listens at {host}:{port} within {seconds:g} s: {reason}") from error


def join(store: dist.Store, rank: int, world: int, device: torch.device, seconds: float) -> ProcessGroup:
    """Enter the group; returns when all have. Every later operation has `seconds` to finish. Raises EngineError."""
    try:
        dist.init_process_group(
            backend="nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=seconds),
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise EngineError(f"learner {rank} of {world} did not find its partners in {seconds:g} s: {reason}") from error
    return ProcessGroup(rank, world, device)
