"""Reads a run's folder for its report; parts can be missing or damaged.

1. A missing part is None or empty: the run has not produced it yet, or is not configured to.
2. A part that cannot be read becomes a problem: one sentence that the report shows.
3. Lines of `metrics.jsonl` that belong to one iteration (its metrics, an evaluation after it) become one row.
"""

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mtrl_ray.dialogue.conversation import Conversation, from_table, validate
from mtrl_ray.errors import DataError
from mtrl_ray.monitoring.recorder import read_metrics
from mtrl_ray.statistics.estimates import Estimate

COMMAND = "command.txt"
"""File with the command of the run, in one line."""
Row = dict[str, float]
T = TypeVar("T")


@dataclass
class Contents:
    """Contents of a run's folder. `rows`: one per iteration, only finite metrics. `summary`: name → estimate."""

    folder: Path
    config_text: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    summary: dict[str, Estimate] = field(default_factory=dict)
    start: list[Conversation] | None = None
    end: list[Conversation] | None = None
    command: str | None = None
    problems: list[str] = field(default_factory=list)

    def setting(self, path: str) -> Any:
        """A setting of the resolved config by its dotted path; None if there is none."""
        node: Any = self.config
        for key in path.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        return node


def read(folder: Path) -> Contents:
    """Read everything the report shows. Raises DataError only if `folder` is not a folder."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not the folder of a run; give runs/NAME of a run that has started")
    contents = Contents(folder)

    def attempt(path: Path, reader: Callable[[Path], T]) -> T | None:
        if not path.exists():
            return None
        try:
            return reader(path)
        except (DataError, OSError, ValueError, yaml.YAMLError, pa.ArrowException) as error:
            contents.problems.append(f"{path.relative_to(folder)} cannot be read: {' '.join(str(error).split())}")
            return None

    contents.config_text = attempt(folder / "config.yaml", _text)
    contents.config = attempt(folder / "config.yaml", _config) or {}
    contents.rows = attempt(folder / "metrics.jsonl", lambda path: _rows(path.parent)) or []
    contents.summary = attempt(folder / "summary.json", _summary) or {}
    contents.start = attempt(folder / "evaluation" / "start.parquet", _conversations)
    contents.end = attempt(folder / "evaluation" / "end.parquet", _conversations)
    contents.command = attempt(folder / COMMAND, lambda path: _text(path).strip()) or _command(contents)
    return contents


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _config(path: Path) -> dict[str, Any]:
    tree = yaml.safe_load(_text(path))
    if not isinstance(tree, dict):
        raise DataError(f"it is a {type(tree).__name__}, not sections of settings")
    return tree


def _command(contents: Contents) -> str | None:
    """A command that repeats the run from its resolved settings."""
    name = contents.setting("run.name")
    if not isinstance(name, str):
        return None
    config = contents.folder / "config.yaml"
    return shlex.join(["mtrl", "train", str(config), f"run.name={name}-again"])


def _rows(folder: Path) -> list[Row]:
    merged: dict[int, Row] = {}
    for line in read_metrics(folder):
        row = merged.setdefault(line["iteration"], {})
        row.update({key: float(value) for key, value in line.items() if _is_number(value)})
    return [merged[iteration] for iteration in sorted(merged)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _summary(path: Path) -> dict[str, Estimate]:
    tree = json.loads(_text(path))
    if not isinstance(tree, dict):
        raise DataError(f"it is a {type(tree).__name__}, not a mapping from names to estimates")
    estimates = {name: Estimate.from_dict(entry) for name, entry in tree.items() if isinstance(entry, dict)}
    return {name: estimate for name, estimate in estimates.items() if math.isfinite(estimate.mean)}


def _conversations(path: Path) -> list[Conversation]:
    conversations = from_table(pq.read_table(path))
    for conversation in conversations:
        validate(conversation)
        numbers = conversation.metrics.values() if isinstance(conversation.metrics, dict) else [None]
        if not all(isinstance(number, int | float) for number in numbers):
            raise DataError(
                f"conversation {conversation.id!r}: {conversation.metrics!r} is not a mapping from names to numbers"
            )
    return conversations
