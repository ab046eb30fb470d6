"""The constructor options `user` and `llm` that environments share."""

from collections.abc import Mapping
from typing import Any

from mtrl_envs.llm.user import LLMSettings
from mtrl_ray.errors import ConfigurationError


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
