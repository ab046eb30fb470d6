"""Leases: which conversation to hold, under which identity and seed.

A lease's identity is (split, iteration, context, sample); its seed is a hash of that and the run's seed, so the same
lease gives the same conversation wherever and however often it is held, under the same weights.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) from a tuple of names and numbers, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Lease:
    """One conversation to hold: the `index`-th context of `split`, its `sample`-th conversation of `iteration`.

    `mixture`: the reference's share in what is sampled (`rollout.engine`).
    """

    split: str
    index: int
    iteration: int
    sample: int
    seed: int
    mixture: float = 0.0

    @property
    def id(self) -> str:
        """The conversation's identity, unique within a run."""
        return f"{self.split}-{self.iteration:06d}-{self.index:07d}-{self.sample:03d}"


def make_leases(
    run_seed: int, split: str, iteration: int, indices: Iterable[int], samples: int = 1, mixture: float = 0.0
) -> list[Lease]:
    """Leases for `samples` conversations on each context."""
    return [
        Lease(split, index, iteration, sample, derive_seed(run_seed, split, iteration, index, sample), mixture)
        for index in indices
        for sample in range(samples)
    ]
