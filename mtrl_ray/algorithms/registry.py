"""Algorithms by name, imported when they are asked for."""

from importlib import import_module
from typing import Any

from mtrl_ray.algorithms.base import Algorithm
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.settings.section import validated

ALGORITHMS = {
    "iterative_ppo": "mtrl_ray.algorithms.iterative_ppo:IterativePPO",
    "itpo": "mtrl_ray.algorithms.itpo:ITPO",
    "mtpo": "mtrl_ray.algorithms.mtpo:MTPO",
    "single_turn": "mtrl_ray.algorithms.single_turn:SingleTurn",
}
"""Name in a recipe's `algorithm.name`: module and class."""


def algorithm_class(name: object) -> type[Algorithm[Any]]:
    """The class behind a name, or behind `package.module:ClassName`. Raises ConfigurationError."""
    target = ALGORITHMS.get(str(name), str(name))
    module, colon, attribute = target.partition(":")
    if not colon:
        raise ConfigurationError(
            f"algorithm.name is {name!r}; known algorithms: {', '.join(sorted(ALGORITHMS))} (or package.module:ClassName)"
        )
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"algorithm.name is {name!r}, which cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise ConfigurationError(
            f"algorithm.name is {name!r}, which is not a subclass of mtrl_ray.algorithms.base.Algorithm"
        )
    return found


def make_algorithm(tree: dict[str, Any]) -> Algorithm[Any]:
    """The algorithm of a recipe's `algorithm:` section. Raises ConfigurationError."""
    chosen = algorithm_class(tree.get("name"))
    return chosen(validated(chosen.settings_class, tree, "algorithm"))
