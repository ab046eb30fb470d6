"""A cache of frozen models' outputs, for repeated passes over the same rows.

One iteration needs the reference's log-probabilities of the same tokens several times: for the process reward model's fit, its
rewards, and the KL penalty. Conversations that are scored repeatedly need them in every iteration. A frozen model gives the
same outputs for the same rows, to the bit, so the cache saves time and changes nothing.

Outputs belong to the model object. A model that was copied anew or loaded has none, on every process of the learner alike: all
of them take part in a pass, or none.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields
from hashlib import blake2b
from weakref import WeakKeyDictionary

import numpy as np

from mtrl_ray.learner.rows.packing import Rows
from mtrl_ray.models.policy import ForwardOptions, PolicyReader

KEPT = 4
"""Outputs per model, the most recently used: the iteration's conversations, and those that are scored every time."""

Outputs = dict[str, np.ndarray]
"""As `Core.evaluate` returns them."""


class ReferenceCache:
    """Outputs of frozen models at whole `Rows`."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[PolicyReader, OrderedDict[bytes, Outputs]] = WeakKeyDictionary()

    def get(self, model: PolicyReader, rows: Rows, options: ForwardOptions, compute: Callable[[], Outputs]) -> Outputs:
        """What `compute()` returned for this model and these rows before, or returns now; read-only arrays."""
        kept, key = self._kept.setdefault(model, OrderedDict()), _digest(rows, options)
        if key not in kept:
            kept[key] = compute()
            for values in kept[key].values():
                values.setflags(write=False)
            if len(kept) > KEPT:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return dict(kept[key])


def _digest(rows: Rows, options: ForwardOptions) -> bytes:
    digest = blake2b(repr(options).encode(), digest_size=16)
    for field in fields(rows):
        values = np.ascontiguousarray(getattr(rows, field.name))
        digest.update(f"{field.name} {values.dtype} {values.shape}".encode())
        digest.update(values.data)
    return digest.digest()
