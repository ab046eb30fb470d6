"""Shared checks of environment options; each raises ConfigurationError with one sentence."""

import math

from mtrl_ray.errors import ConfigurationError


def share(environment: str, key: str, value: float) -> float:
    """`value`, if it is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise ConfigurationError(f"{environment}: {key} is {value!r}; it has to be a number from 0 to 1")
    return float(value)


def positive(environment: str, key: str, value: float) -> float:
    """`value`, if it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < math.inf:
        raise ConfigurationError(f"{environment}: {key} is {value!r}; it has to be a number above 0")
    return float(value)
