"""Held-out splits of logged conversations.

A conversation's side is a function of a seed and of its source, or else of its context's id, alone: both views of one dialogue
and all conversations about one context fall on the same side, on every machine, and stay there when the log grows.
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrl_ray.dialogue.conversation import completed
from mtrl_ray.errors import ConfigurationError


def held_out(name: str, fraction: float = 0.1, seed: int = 0) -> bool:
    """Whether a source or context is held out: a hash of (seed, name), uniform in [0, 1), lies under `fraction`.

    Raises ConfigurationError if `fraction` does not lie in [0, 1].
    """
    if not 0.0 <= fraction <= 1.0:
        raise ConfigurationError(f"the held-out fraction is {fraction}; it has to lie in [0, 1]")
    digest = hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < fraction


def split_table(table: pa.Table, fraction: float = 0.1, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """(train, held-out) rows of a table of conversations, by their source or context, each in the table's order."""
    names = pc.coalesce(completed(table)["source"], table["context_id"]).combine_chunks().dictionary_encode()
    sides = np.array([held_out(name, fraction, seed) for name in names.dictionary.to_pylist()], dtype=bool)
    marked = sides[names.indices.to_numpy()] if len(sides) else np.zeros(0, dtype=bool)
    return table.filter(pa.array(~marked)), table.filter(pa.array(marked))
