"""Recipes: YAML files that name what differs from the defaults of the settings, and overrides on the command line.

`load(recipe, ["rollout.workers=2", …])` reads a recipe (a name of `mtrl_ray/recipes` or a path), applies the overrides, and
validates: a misspelt key, a wrong type or an impossible combination is one sentence. An algorithm brings its own section:
`algorithm.name` picks it from the registry, which validates the rest. The resolved tree is written into the run's folder. A
resumed run reads that, and what its overrides change is written there again.
"""

import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mtrl_envs.registry import make
from mtrl_ray.algorithms.registry import make_algorithm
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.models.positions import check_context_length
from mtrl_ray.run.preflight import check_agents
from mtrl_ray.settings.migration import refuse_old
from mtrl_ray.settings.secrets import refuse_secrets
from mtrl_ray.settings.section import sentence
from mtrl_ray.settings.tree import Settings


def recipe_names() -> list[str]:
    """Names of the recipes that come with the project."""
    folder = resources.files("mtrl_ray") / "recipes"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load(recipe: str, overrides: Sequence[str] = ()) -> Settings:
    """The settings of a recipe with overrides `key.path=value` (values in YAML). Raises ConfigurationError."""
    tree = _read_recipe(recipe)
    for override in overrides:
        apply(tree, override)
    return validate(tree, recipe)


def validate(tree: dict[str, Any], source: str) -> Settings:
    """Settings from a plain tree; `source` is named in error sentences. Raises ConfigurationError."""
    refuse_secrets(tree)
    refuse_old(tree, source)
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise ConfigurationError(f"{source}: {sentence(error, Settings)}") from None
    algorithm = make_algorithm(settings.algorithm)
    check_agents(settings, make(settings.environment.name, **settings.environment.options))
    algorithm.check(settings)
    if Path(settings.model.path).is_dir():
        check_context_length(settings.model, settings.model.path)
    return settings


def dump(settings: Settings) -> str:
    """The resolved tree as YAML."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def _read_recipe(recipe: str) -> dict[str, Any]:
    named = resources.files("mtrl_ray") / "recipes" / f"{recipe}.yaml"
    path = Path(recipe)
    if os.sep not in recipe and named.is_file():
        text = named.read_text()
    elif path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"recipe {recipe!r} cannot be read as text: {error}") from None
    else:
        raise ConfigurationError(
            f"there is no recipe {recipe!r}; give a YAML file or one of {', '.join(recipe_names())}"
        )
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"recipe {recipe!r} is not YAML{place_of(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigurationError(f"recipe {recipe!r} holds {type(tree).__name__}; it has to hold sections such as run:")
    return tree


def place_of(error: yaml.YAMLError) -> str:
    """Where and why a text is not YAML, as the end of a sentence that repeats nothing of it."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ""
    return f": line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"


def apply(tree: dict[str, Any], override: str) -> None:
    """Put an override `key.path=value` into a plain tree. Raises ConfigurationError, which repeats no value."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigurationError(f"{_key(override)!r} is not an override; write key.path=value, for example run.seed=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigurationError(f"{_key(path)}: the value is not YAML; quote it") from None
    alone = value
    for key in reversed(keys):
        alone = {key: alone}
    refuse_secrets(alone)  # a later override may hide it from the tree, but not from the command
    node = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigurationError(f"{_key(path)}: {key!r} is a value, not a section")
    node[keys[-1]] = value


def _key(override: str) -> str:
    """As much of an override as is certainly a key."""
    found = re.match(r"[a-z_.]*", override)
    key = found[0] if found else ""
    return key if key == override else f"{key}…"
