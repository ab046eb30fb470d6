"""How work is cut into chunks: small ones, so that little is lost with a worker, or exact ones, which give the same bits again.

*Small chunks* have `rollout.lease_size` leases each, and a worker has several in flight. Known conversations are left out
before anything is cut.

*Exact chunks*: which requests share a step of an engine decides the last bits of its log-probabilities, and with them of
everything that is learned. So the whole list is cut the same way for any number of workers: into one chunk for each of the
most workers there may be. A worker takes one chunk at a time, from an empty cache to its end. A chunk of which anything is
missing is rolled out again as a whole, with the same result, and the replay buffer drops the doubles.

Runs are exact if `rollout.workers` is a number and the users are scripted. Users behind a network answer at a different pace
each time, so nothing would be the same twice.
"""

from collections.abc import Set
from dataclasses import dataclass
from math import ceil

from mtrl_envs.registry import make
from mtrl_ray.rollout.lease import Lease
from mtrl_ray.settings.tree import Settings


@dataclass(frozen=True)
class Chunk:
    """A piece of work for one worker: leases, or the half-open range of a table of states, each answered `samples` times."""

    leases: tuple[Lease, ...] = ()
    states: tuple[int, int] = (0, 0)
    samples: int = 1
    tries: int = 0

    @property
    def items(self) -> int:
        """Conversations to roll out, or responses to sample."""
        start, stop = self.states
        return len(self.leases) or (stop - start) * self.samples


def is_exact(settings: Settings) -> bool:
    """Whether the run's chunks are exact."""
    environment = make(settings.environment.name, **settings.environment.options)
    return isinstance(settings.rollout.workers, int) and not environment.blocking


class Cutter:
    """Cuts work for one fleet. `in_flight`: chunks that a worker may hold at a time."""

    def __init__(self, settings: Settings) -> None:
        self._rollout = settings.rollout
        self.exact = is_exact(settings)
        filling = -(-self._rollout.concurrency // self._rollout.lease_size)
        self.in_flight = 1 if self.exact else filling + 1

    def leases(self, leases: list[Lease], known: Set[str], workers: int) -> list[Chunk]:
        """Chunks with all leases that are not `known`, for as many workers as there are now."""
        if not self.exact:
            leases = [lease for lease in leases if lease.id not in known]
        size = self._size(len(leases), self._rollout.lease_size, workers)
        chunks = [Chunk(leases=tuple(leases[start : start + size])) for start in range(0, len(leases), size)]
        return [chunk for chunk in chunks if any(lease.id not in known for lease in chunk.leases)]

    def states(self, count: int, samples: int, workers: int) -> list[Chunk]:
        """Chunks with `count` states, each of which is answered `samples` times."""
        size = self._size(count, max(1, self._rollout.lease_size // samples), workers)
        return [Chunk(states=(start, min(count, start + size)), samples=samples) for start in range(0, count, size)]

    def _size(self, items: int, most: int, workers: int) -> int:
        if self.exact:
            return max(1, ceil(items / self._rollout.bounds[1]))
        return max(1, min(most, ceil(items / workers)))
