"""Environments by name, imported when they are first asked for.

1. `make(name, **options)` builds an environment; `name` is one of `ENVIRONMENTS`, or `package.module:ClassName` for a class
   of another package, or of a file in the current folder.
2. A class or function of the running program can be given a name for this process (`give`).
3. Options are the class's keyword arguments; an unknown one is refused with the list of those that exist.
4. Whatever cannot be built is a ConfigurationError: an import that fails, a class without its methods or attributes, a
   constructor that raises, shares that do not sum to 1.
"""

import math
from collections.abc import Callable
from typing import Any, cast

from mtrl_envs.base import Environment
from mtrl_envs.driver import finite
from mtrl_envs.measure import AGENTS
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.settings.outside import build, named_class

ENVIRONMENTS: dict[str, str] = {
    "sales": "mtrl_envs.sales.environment:Sales",
    "car_dealer": "mtrl_envs.car_dealer.environment:CarDealer",
    "document_writing": "mtrl_envs.document_writing.environment:DocumentWriting",
    "education": "mtrl_envs.education.environment:Education",
    "math_tutoring": "mtrl_envs.math_tutoring.environment:MathTutoring",
    "medical": "mtrl_envs.medical.environment:Medical",
}
"""Name of each environment of this project, and where its class is."""

GIVEN: dict[str, Callable[..., Environment]] = {}
"""What `give` has named in this process."""
GIVEN_PREFIX = "given:"


def give(factory: Callable[..., Environment]) -> str:
    """Name a class, or a function that makes an environment, in this process; the name, `given:NAME`."""
    name = f"{GIVEN_PREFIX}{getattr(factory, '__name__', type(factory).__name__)}"
    GIVEN[name] = factory
    return name


def environment_class(name: str) -> type[Environment]:
    """The class behind a name or a `package.module:ClassName`. Raises ConfigurationError if there is none."""
    if name.startswith(GIVEN_PREFIX):
        factory = _given(name)
        return factory if isinstance(factory, type) else type(make(name))
    return named_class("environment.name", name, ENVIRONMENTS, Environment)  # type: ignore[type-abstract]


def make(name: str, **options: Any) -> Environment:
    """Build an environment. Raises ConfigurationError for an unknown name, option or value, or an incomplete class."""
    factory = _given(name) if name.startswith(GIVEN_PREFIX) else environment_class(name)
    setting = f"environment {name!r}"
    environment = build(setting, cast(type[Environment], factory), **options)
    if not isinstance(environment, Environment):
        raise ConfigurationError(f"{setting} made {environment!r}; it has to make a mtrl_envs.base.Environment")
    found = type(environment)
    if not isinstance(getattr(environment, "name", None), str) or not environment.name:
        raise ConfigurationError(f"{setting}: {found.__name__} has to have an attribute name, a text")
    turns: Any = getattr(environment, "max_turns", None)
    if isinstance(turns, bool) or not isinstance(turns, int) or turns < 1:
        raise ConfigurationError(f"{setting}: {found.__name__}.max_turns is {turns!r}; it has to be 1 or more")
    _check_shares(setting, environment.warm_start)
    return environment


def _check_shares(setting: str, shares: Any) -> None:
    known = f"it has to be a dict of shares by scripted agent ({', '.join(AGENTS)}) that sum to 1, or empty"
    if not isinstance(shares, dict):
        raise ConfigurationError(f"{setting}: warm_start is {shares!r}; {known}")
    unknown = [name for name in shares if name not in AGENTS]
    if unknown:
        raise ConfigurationError(f"{setting}: warm_start names {unknown[0]!r}; {known}")
    values = [finite(value) for value in shares.values()]
    if any(value is None or value < 0 for value in values):
        raise ConfigurationError(f"{setting}: warm_start is {shares!r}; {known}")
    total = math.fsum(value for value in values if value is not None)
    if shares and not math.isclose(total, 1.0, abs_tol=1e-6):
        raise ConfigurationError(f"{setting}: the shares of warm_start sum to {total:g}; {known}")


def _given(name: str) -> Callable[..., Environment]:
    if name not in GIVEN:
        raise ConfigurationError(
            f"environment {name!r} was a class of the program that started the run; continue it from there "
            f"(mtrl_ray.train(resume=…, environment={name.removeprefix(GIVEN_PREFIX)})), or put the class into a module and "
            "start a run with environment.name=package.module:ClassName"
        )
    return GIVEN[name]
