"""The random states of this process: Python's and numpy's global generators, as JSON values."""

import random
from typing import Any

import numpy as np


def seed(number: int) -> None:
    """Seed both."""
    random.seed(number)
    np.random.seed(number)


def state() -> dict[str, Any]:
    """Both states, for `restore`."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
    }


def restore(state: dict[str, Any]) -> None:
    """Continue from `state`. Raises KeyError, TypeError or ValueError if it is none."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state["numpy"]))
