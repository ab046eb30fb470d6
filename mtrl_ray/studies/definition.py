"""The definition of a study: a YAML file with the runs of a table and the numbers it shows for them.

1. A cell of the table has one value of every axis. A value is a set of overrides of the recipe's settings, possibly with
   another recipe (`recipe`). `overrides` apply to every cell; values override them, later axes override earlier ones.
2. `exclude` removes cells: an entry names values of some axes, and every cell that has one of them on each of these
   axes is removed.
3. Every cell runs once per seed. The study therefore sets `run.seed`, `run.name` and `run.folder` itself.
4. The definition is checked when it is read; `mtrl_ray.studies.cells` validates the settings of every cell.
"""

import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.settings.section import Section, validated

RECIPE = "recipe"
"""Key of a value's overrides that replaces the study's recipe."""
OWN = ("run.seed", "run.name", "run.folder")
RESERVED = (
    "over_start",
    "seeds",
    "mean",
    "low",
    "high",
    "interval",
    "runs",
    "metrics",
    "start",
    "end",
    "change",
    "gap",
    "contexts",
    "metric",
    "difference",
    "smallest",
    "runs_for",
)
"""Keys of a row of the table, which cannot be names of axes."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._]*")
"""Names of axes and values: they become parts of run names, joined by hyphens."""

Overrides = dict[str, Any]


class Published(Section):
    """Published numbers to show on the page."""

    source: str = Field(min_length=1)
    win_rates: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Row → column → win rate of the row over the column, by names of the axis."""
    scores: dict[str, float] = Field(default_factory=dict)
    """Mean scores, by names of the axis."""


class Definition(Section):
    """A study file."""

    title: str = Field(min_length=1)
    about: str = ""
    """A paragraph for the page: the question of the study, and how its cells answer it."""
    recipe: str | None = None
    """Recipe of every cell whose values name no other one."""
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    overrides: Overrides = Field(default_factory=dict)
    axes: dict[str, dict[str, Overrides]] = Field(min_length=1)
    exclude: list[dict[str, list[str]]] = Field(default_factory=list)
    columns: str | None = None
    """Axis whose values are the columns of the first table; None: only the table with one row per cell."""
    lines: str | None = None
    """Axis whose values are the lines of a figure; None: the last axis."""
    baseline: dict[str, str] = Field(default_factory=dict)
    """Values by axis. Every other cell is compared with the cell that has these and otherwise the same values."""
    curves: list[str] = Field(default=["collect/score_mean"])
    """Metrics that are plotted over the iterations."""
    metrics: list[str] = Field(default_factory=list)
    """Metrics whose last value is averaged over the seeds, in addition to the scores."""
    areas: list[str] = Field(default_factory=list)
    """Metrics whose mean over all iterations is compared (`mtrl_ray.studies.areas`)."""
    against: str | None = None
    """One of `metrics`: a figure shows the scores over it (`mtrl_ray.studies.trade_offs`)."""

    speed: bool = False
    """Whether the page has a table of every run: scores before and after, conversations and seconds to shares of the gap."""
    closes: float | None = Field(None, gt=0)
    """Share of the gap to the scripted expert that every run has to close; otherwise the command fails at the end."""
    holds: bool = False
    """Whether no run may fall below its start: the lowest mean of 128 training conversations in a row is at least the lower
    end of the start's interval; otherwise the command fails at the end."""
    win_rates: bool = False
    """Whether the policies of all cells are compared with each other, by the environment's oracle; needs a single axis."""
    over_start: bool = False
    """Whether every cell's policy is compared with its initial policy, by the environment's oracle."""
    published: Published | None = None

    @field_validator("axes", mode="before")
    @classmethod
    def _text_names(cls, axes: Any) -> Any:
        """Turn names that YAML parses as numbers or booleans (0.1, true) into texts, and empty values into no overrides."""
        if not isinstance(axes, dict):
            return axes
        return {
            str(axis): {_text(name): overrides or {} for name, overrides in values.items()}
            if isinstance(values, dict)
            else values
            for axis, values in axes.items()
        }

    @field_validator("exclude", mode="before")
    @classmethod
    def _listed(cls, entries: Any) -> Any:
        if not isinstance(entries, list):
            return entries
        return [
            {str(axis): [_text(name) for name in _as_list(names)] for axis, names in entry.items()}
            if isinstance(entry, dict)
            else entry
            for entry in entries
        ]

    @field_validator("baseline", mode="before")
    @classmethod
    def _text_baseline(cls, baseline: Any) -> Any:
        return {str(axis): _text(name) for axis, name in baseline.items()} if isinstance(baseline, dict) else baseline

    @model_validator(mode="after")
    def _possible(self) -> "Definition":
        self._check_names()
        for entry in self.exclude:
            for axis, names in entry.items():
                for name in names:
                    self.check_value(axis, name, "exclude: ")
        for axis, name in self.baseline.items():
            self.check_value(axis, name, "baseline: ")
        for key, chosen in (("columns", self.columns), ("lines", self.lines)):
            if chosen is not None and chosen not in self.axes:
                raise ValueError(f"{key} is {chosen!r}, which is not an axis; the study's axes: {', '.join(self.axes)}")
        if self.against is not None and self.against not in self.metrics:
            raise ValueError(f"against is {self.against!r}, which is not in metrics; add it there")
        if self.win_rates and len(self.axes) > 1:
            raise ValueError(f"win_rates needs exactly one axis; the study has {', '.join(self.axes)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}; list each seed once")
        return self

    def _check_names(self) -> None:
        for axis, values in self.axes.items():
            if axis in RESERVED or not NAME.fullmatch(axis):
                raise ValueError(
                    f"{axis!r} cannot be the name of an axis; choose another name of letters, digits, _ and ."
                )
            if not values:
                raise ValueError(f"axes.{axis} has no values; give at least one")
            for name, overrides in values.items():
                if not NAME.fullmatch(name):
                    raise ValueError(f"axes.{axis} has the value {name!r}; a name has letters, digits, _ and . only")
                _check_keys(f"axes.{axis}.{name}", overrides, allowed=(RECIPE,))
        _check_keys("overrides", self.overrides)

    def check_value(self, axis: str, name: str, where: str = "") -> None:
        """Raises ValueError if the study does not have the axis, or the axis does not have the value."""
        if axis not in self.axes:
            raise ValueError(f"{where}there is no axis {axis!r}; the study's axes: {', '.join(self.axes)}")
        if name not in self.axes[axis]:
            raise ValueError(
                f"{where}the axis {axis!r} has no value {name!r}; its values: {', '.join(self.axes[axis])}"
            )

    def excludes(self, values: dict[str, str]) -> bool:
        """Whether the cell with these values (axis → name) is excluded."""
        return any(all(values[axis] in names for axis, names in entry.items()) for entry in self.exclude)

    @property
    def line_axis(self) -> str:
        """The axis whose values are the lines of a figure."""
        return self.lines or list(self.axes)[-1]


def study_names() -> list[str]:
    """Names of the studies in `definitions/`."""
    folder = resources.files("mtrl_ray.studies") / "definitions"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_definition(study: str) -> tuple[str, Definition]:
    """Name and definition of a study, given by a name of `definitions/` or a YAML file. Raises ConfigurationError."""
    named = resources.files("mtrl_ray.studies") / "definitions" / f"{study}.yaml"
    path = Path(study)
    if NAME.fullmatch(study) and named.is_file():
        name, text = study, named.read_text()
    elif path.is_file():
        name, text = path.stem, path.read_text()
    else:
        raise ConfigurationError(f"there is no study {study!r}; give a YAML file or one of {', '.join(study_names())}")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"study {study!r} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigurationError(
            f"study {study!r} is a {type(tree).__name__}; it has to be a mapping with title, recipe, axes, …"
        )
    definition: Definition = validated(Definition, tree, f"study {name}")
    return name, definition


def _check_keys(where: str, overrides: Overrides, allowed: tuple[str, ...] = ()) -> None:
    for key in overrides:
        if key in OWN:
            raise ValueError(f"{where} sets {key}, which the study sets for every run; remove it")
        if key not in allowed and "." not in key:
            raise ValueError(f"{where} has {key!r}; write settings by their path, for example algorithm.window: 2")


def _as_list(names: Any) -> list[Any]:
    return names if isinstance(names, list) else [names]


def _text(name: Any) -> str:
    """A name as text, in YAML notation: `true`, `0.1`, `none`."""
    return str(name).lower() if name is None or isinstance(name, bool) else str(name)
