"""Algorithms by name, imported when they are asked for."""

from typing import Any

from mtrl_ray.algorithms.base import Algorithm
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.settings.outside import build, named_class
from mtrl_ray.settings.section import Section, validated

ALGORITHMS = {
    "iterative_ppo": "mtrl_ray.algorithms.iterative_ppo:IterativePPO",
    "itpo": "mtrl_ray.algorithms.itpo:ITPO",
    "mtpo": "mtrl_ray.algorithms.mtpo:MTPO",
    "policy_gradient": "mtrl_ray.algorithms.policy_gradient:PolicyGradient",
    "refuel": "mtrl_ray.algorithms.refuel:Refuel",
    "single_turn": "mtrl_ray.algorithms.single_turn:SingleTurn",
}
"""Name in a recipe's `algorithm.name`: module and class."""


def algorithm_class(name: object) -> type[Algorithm[Any]]:
    """The class behind a name, or behind `package.module:ClassName`. Raises ConfigurationError."""
    found = named_class("algorithm.name", name, ALGORITHMS, Algorithm)  # type: ignore[type-abstract]
    section: Any = getattr(found, "settings_class", None)
    if not (isinstance(section, type) and issubclass(section, Section)):
        raise ConfigurationError(
            f"algorithm.name is {name!r}: {found.__name__}.settings_class is {section!r}; it has to be a subclass of "
            "mtrl_ray.settings.section.Section"
        )
    return found


def make_algorithm(tree: dict[str, Any]) -> Algorithm[Any]:
    """The algorithm of a recipe's `algorithm:` section. Raises ConfigurationError."""
    chosen = algorithm_class(tree.get("name"))
    settings = validated(chosen.settings_class, tree, "algorithm")
    return build(f"algorithm {tree.get('name')!r}", chosen, settings)
