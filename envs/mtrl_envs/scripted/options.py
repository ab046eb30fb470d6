"""Checks of constructor options that environments share; each raises ConfigurationError in one sentence."""

import math
from collections.abc import Mapping
from typing import Any

from mtrl_envs.llm.user import LLMSettings
from mtrl_ray.errors import ConfigurationError


def share(environment: str, key: str, value: float) -> float:
    """`value`, if it is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise ConfigurationError(f"{environment}: {key} is {value!r}, it has to be a number from 0 to 1")
    return float(value)


def positive(environment: str, key: str, value: float) -> float:
    """`value`, if it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < math.inf:
        raise ConfigurationError(f"{environment}: {key} is {value!r}, it has to be a number above 0")
    return float(value)


def user_kind(environment: str, user: str, llm: Mapping[str, Any] | None) -> LLMSettings | None:
    """The settings of the LLM that plays the user, or None for the scripted user."""
    if user not in ("scripted", "llm"):
        raise ConfigurationError(f"{environment}: user is {user!r}, use 'scripted' or 'llm'")
    if user == "scripted":
        if llm is not None:
            raise ConfigurationError(f"{environment}: llm settings are given but user is 'scripted'; set user to 'llm'")
        return None
    if llm is None:
        raise ConfigurationError(f"{environment}: user is 'llm', so llm needs at least base_url and model")
    return LLMSettings.parse(environment, llm)
