"""Environments by name, imported when they are first asked for.

1. `make(name, **options)` builds an environment; `name` is one of `ENVIRONMENTS`, or `package.module:ClassName` for a
   class that lives outside this project.
2. Options are the class's keyword arguments; an unknown one is refused with the list of those that exist.
3. Whatever cannot be built is a `ConfigurationError`.
"""

import importlib
import inspect
from typing import Any

from mtrl_envs.base import Environment
from mtrl_ray.errors import ConfigurationError

ENVIRONMENTS: dict[str, str] = {
    "sales": "mtrl_envs.sales.environment:Sales",
    "car_dealer": "mtrl_envs.car_dealer.environment:CarDealer",
    "document_writing": "mtrl_envs.document_writing.environment:DocumentWriting",
    "education": "mtrl_envs.education.environment:Education",
    "math_tutoring": "mtrl_envs.math_tutoring.environment:MathTutoring",
    "medical": "mtrl_envs.medical.environment:Medical",
}
"""Name of each environment of this project, and where its class is."""


def environment_class(name: str) -> type[Environment]:
    """The class behind a name or a `package.module:ClassName`. Raises ConfigurationError where there is none."""
    target = ENVIRONMENTS.get(name, name)
    module_name, separator, class_name = target.partition(":")
    if not separator or not module_name or not class_name:
        known = ", ".join(sorted(ENVIRONMENTS))
        raise ConfigurationError(f"unknown environment {name!r}: use one of {known}, or 'package.module:ClassName'")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError) as error:
        raise ConfigurationError(
            f"environment {name!r}: module {module_name!r} cannot be imported ({error})"
        ) from error
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, Environment)):
        raise ConfigurationError(
            f"environment {name!r}: {class_name!r} in {module_name!r} has to be a subclass of mtrl_envs.base.Environment"
        )
    return found


def make(name: str, **options: Any) -> Environment:
    """Build an environment. Raises ConfigurationError for an unknown name, option or value."""
    found = environment_class(name)
    signature = inspect.signature(found)
    try:
        signature.bind(**options)
    except TypeError as error:
        known = ", ".join(signature.parameters) or "none"
        raise ConfigurationError(f"environment {name!r}: {error}; its options are: {known}") from error
    return found(**options)
