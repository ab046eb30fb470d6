"""The runs of a study: every cell with every seed. All settings are resolved and checked before the first run starts.

1. Cells are in the order of the axes, with seeds outermost, so an interrupted study has complete tables of fewer seeds.
2. Overrides apply in this order: the study's, the values' axis by axis, the command line's, the run's own seed,
   name and folder. The result goes through `config.load`, as for `mtrl train`.
3. Text values of the definition can contain `{seed}`, the run's seed, and `{runs}`, the folder of all studies' runs,
   so one study can start from models that another one trained.
4. Two cells with the same settings are an error: one of them would be redundant.
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
"""Axis → selected values."""


@dataclass(frozen=True)
class Cell:
    """One run. `values`: axis → name of its value. `overrides`: as arguments of `mtrl train`."""

    values: dict[str, str]
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    settings: Settings

    @property
    def name(self) -> str:
        """Name of the run, for example `rloo-itpo-s0`."""
        return self.settings.run.name

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.settings.run_folder

    @property
    def command(self) -> str:
        """The command for this run alone."""
        return shlex.join(["mtrl", "train", self.recipe, *self.overrides])

    def chosen(self, choice: Choice) -> bool:
        """Whether the cell has one of the selected values on every axis of `choice`."""
        return all(self.values[axis] in names for axis, names in choice.items())


def make_cells(
    name: str, definition: Definition, seeds: Sequence[int], folder: Path, overrides: Sequence[str] = ()
) -> list[Cell]:
    """Every run of the study, in execution order.

    `folder` contains the runs' folders. Raises ConfigurationError with the first invalid cell and the number of invalid cells.
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
    """Parse `axis=value,axis=value`: a union over values of one axis, an intersection over axes. Raises ConfigurationError."""
    choice: Choice = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        axis, equals, value = part.partition("=")
        if not equals:
            raise ConfigurationError(
                f"--only {text}: {part!r} is not axis=value; write for example {_example(definition)}"
            )
        try:
            definition.check_value(axis, value)
        except ValueError as error:
            raise ConfigurationError(f"--only {text}: {error}") from None
        choice.setdefault(axis, []).append(value)
    return choice


def parse_seeds(text: str) -> list[int]:
    """Parse seeds such as `0,1,2`. Raises ConfigurationError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigurationError(f"--seeds {text}: write seeds separated by commas, for example 0,1,2")
    return list(dict.fromkeys(int(part) for part in parts))


def label(values: dict[str, str]) -> str:
    """A readable name of a cell: `reward=turn, window=4`."""
    return ", ".join(f"{axis}={name}" for axis, name in values.items())


def written(key: str, value: Any) -> str:
    """An override for the command line; `config.apply` parses it to exactly `value`."""
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
        raise ConfigurationError("there is no recipe; give the study a recipe, or one to every value of an axis")
    own = {"run.seed": seed, "run.name": f"{'-'.join(values.values())}-s{seed}", "run.folder": str(folder)}
    places = {"{seed}": str(seed), "{runs}": str(folder.parent)}
    given = [*(written(key, _placed(value, places)) for key, value in tree.items()), *overrides]
    every = (*given, *(written(key, value) for key, value in own.items()))
    return Cell(values, seed, recipe, every, load(recipe, every))


def _placed(value: Any, places: dict[str, str]) -> Any:
    """Fill in `{seed}` and `{runs}` in a text (`{seed}` alone is a number); other values are unchanged."""
    if value == "{seed}":
        return int(places[value])
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
