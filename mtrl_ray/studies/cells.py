"""The runs of a study: every cell with every seed, its settings resolved and checked before anything starts.

1. Cells come in the order of the axes, seeds outermost: a study that is cut short has whole tables of fewer seeds.
2. Overrides apply in this order: the study's, the values' axis by axis, those of the command line, the run's own seed,
   name and folder. What results goes through `config.load`, as for `mtrl train`.
3. A text among the definition's values may name `{seed}`, the run's, and `{runs}`, the folder that holds the studies' runs:
   so one study begins with what another has trained.
4. Two cells that come out with the same settings are a mistake of the definition: one of them would be run for nothing.
"""

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mtrl_ray.errors import ConfigurationError, MtrlError
from mtrl_ray.run.recipes import load
from mtrl_ray.settings.tree import Settings
from mtrl_ray.studies.definition import RECIPE, Definition

Choice = dict[str, list[str]]
"""Axis: the values that are chosen on it."""


@dataclass(frozen=True)
class Cell:
    """One run. `values`: axis and the name of its value. `overrides`: as `mtrl train` takes them."""

    values: dict[str, str]
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    settings: Settings

    @property
    def name(self) -> str:
        """The run's name: `rloo-itpo-s0`."""
        return self.settings.run.name

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.settings.run_folder

    @property
    def command(self) -> str:
        """The command that makes this run alone."""
        return shlex.join(["mtrl", "train", self.recipe, *self.overrides])

    def chosen(self, choice: Choice) -> bool:
        """Whether it has one of the chosen values on every axis that is named."""
        return all(self.values[axis] in names for axis, names in choice.items())


def make_cells(
    name: str, definition: Definition, seeds: Sequence[int], folder: Path, overrides: Sequence[str] = ()
) -> list[Cell]:
    """Every run of the study, in the order in which they are made.

    `folder` holds the runs' folders. Raises ConfigurationError: the first mistake of any cell, and how many have one.
    """
    cells, mistakes = [], []
    for seed, values in itertools.product(seeds, _combinations(definition)):
        try:
            cells.append(_cell(definition, values, seed, folder, overrides))
        except MtrlError as error:
            mistakes.append(f"cell {label(values)}, seed {seed}: {error}")
    if mistakes:
        more = f" ({len(mistakes)} of {len(cells) + len(mistakes)} runs have a mistake)" if len(mistakes) > 1 else ""
        raise ConfigurationError(f"study {name}, {mistakes[0]}{more}")
    if not cells:
        raise ConfigurationError(f"study {name}: exclude leaves no cell; there is nothing to run")
    _check_different(name, cells)
    return cells


def parse_choice(definition: Definition, text: str) -> Choice:
    """`axis=value,axis=value`: values of one axis add up, axes narrow down. Raises ConfigurationError."""
    choice: Choice = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        axis, equals, value = part.partition("=")
        if not equals:
            raise ConfigurationError(
                f"--only {text}: {part!r} is no choice; write axis=value, for example {_example(definition)}"
            )
        try:
            definition.check_value(axis, value)
        except ValueError as error:
            raise ConfigurationError(f"--only {text}: {error}") from None
        choice.setdefault(axis, []).append(value)
    return choice


def parse_seeds(text: str) -> list[int]:
    """`0,1,2`. Raises ConfigurationError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigurationError(f"--seeds {text}: write the seeds themselves, separated by commas, for example 0,1,2")
    return list(dict.fromkeys(int(part) for part in parts))


def label(values: dict[str, str]) -> str:
    """`reward=turn, window=4`: a cell for people."""
    return ", ".join(f"{axis}={name}" for axis, name in values.items())


def written(key: str, value: Any) -> str:
    """An override as the command line takes it; `config.apply` reads back exactly `value`."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return f"{key}={text.removesuffix(chr(10)).removesuffix('...').strip()}"


def _combinations(definition: Definition) -> list[dict[str, str]]:
    products = itertools.product(*definition.axes.values())
    every = [dict(zip(definition.axes, names, strict=True)) for names in products]
    return [values for values in every if not definition.excludes(values)]


def _cell(definition: Definition, values: dict[str, str], seed: int, folder: Path, overrides: Sequence[str]) -> Cell:
    tree: dict[str, Any] = {RECIPE: definition.recipe, **definition.overrides}
    for axis, name in values.items():
        tree |= definition.axes[axis][name]
    recipe = tree.pop(RECIPE)
    if not isinstance(recipe, str):
        raise ConfigurationError("no recipe is named; give the study a recipe, or one to every value of an axis")
    own = {"run.seed": seed, "run.name": f"{'-'.join(values.values())}-s{seed}", "run.folder": str(folder)}
    places = {"{seed}": str(seed), "{runs}": str(folder.parent)}
    given = [*(written(key, _placed(value, places)) for key, value in tree.items()), *overrides]
    every = (*given, *(written(key, value) for key, value in own.items()))
    return Cell(values, seed, recipe, every, load(recipe, every))


def _placed(value: Any, places: dict[str, str]) -> Any:
    """A text with its `{seed}` and `{runs}` filled in; anything else as it is."""
    if isinstance(value, str):
        for name, filled in places.items():
            value = value.replace(name, filled)
    return value


def _check_different(name: str, cells: list[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        bare = cell.settings.model_copy(update={"run": cell.settings.run.model_copy(update={"name": "run"})})
        twin = seen.setdefault(bare.model_dump_json(), cell)
        if twin is not cell:
            raise ConfigurationError(
                f"study {name}: the cells {label(twin.values)} and {label(cell.values)} have the same settings; "
                "give one of them an override of its own, or exclude it"
            )


def _example(definition: Definition) -> str:
    axis, values = next(iter(definition.axes.items()))
    return f"{axis}={next(iter(values))}"
