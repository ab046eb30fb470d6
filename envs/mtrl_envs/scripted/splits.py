"""Tasks per split: deterministic draws of hidden profiles; no profile is in two splits.

1. A profile is a JSON value. `split_of` assigns it to one split by a stable hash of its content, so the assignment does not
   depend on the machine or on the order of draws.
2. `draw` gives the `index`-th profile of a split: it samples from a generator seeded by (environment, split, index) until
   a profile belongs to the split. Profiles can repeat within a split, but not across splits.
"""

import json
import random
import zlib
from collections.abc import Callable
from typing import Any

from mtrl_envs.base import SPLITS
from mtrl_ray.errors import ConfigurationError

TEST_PERCENT = 20
"""Share of all profiles that belong to the test split."""

Profile = dict[str, Any]


def split_of(profile: Profile) -> str:
    """The split of a profile."""
    digest = zlib.crc32(json.dumps(profile, sort_keys=True).encode())
    return "test" if digest % 100 < TEST_PERCENT else "train"


def draw(environment: str, split: str, index: int, sample: Callable[[random.Random], Profile]) -> Profile:
    """The `index`-th profile of a split. Raises ConfigurationError for another split or a negative index."""
    if split not in SPLITS:
        raise ConfigurationError(f"{environment}: unknown split {split!r}, use one of {', '.join(SPLITS)}")
    if index < 0:
        raise ConfigurationError(f"{environment}: context index {index} is negative, count from 0")
    rng = random.Random(f"{environment}/{split}/{index}")
    for _ in range(1000):
        profile = sample(rng)
        if split_of(profile) == split:
            return profile
    raise ConfigurationError(f"{environment}: its options leave too few different tasks, none is in split {split!r}")
