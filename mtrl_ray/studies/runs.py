"""One run of a study: its state, and how it is completed.

1. The run's folder determines its state. No folder: new. Other settings than the cell's: changed. A final evaluation:
   finished, and not run again. Otherwise: begun, and continued from its newest checkpoint.
2. Settings that affect where and how a run executes, but not what it computes, can differ (`PLACEMENT`).
3. The budget of minutes counts from the start of a run: a continued run gets what its recorded iterations left.
4. If a run fails, the error goes to `failed.txt` in its folder and the next run begins. A failed run is tried again when
   the study is started again.
"""

import json
import traceback
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from mtrl_ray.errors import ConfigurationError, MtrlError
from mtrl_ray.monitoring.recorder import read_metrics
from mtrl_ray.monitoring.view import View
from mtrl_ray.run.folder import CONFIG, prepare, resumed_settings
from mtrl_ray.run.lock import run_lock
from mtrl_ray.settings.tree import Settings
from mtrl_ray.studies.cells import Cell

SUMMARY = "summary.json"
FAILED = "failed.txt"
"""File with the error message in its first line; for a defect, the traceback follows."""
SECONDS = "iteration/seconds"
NO_TIME_LEFT = 1e-6
"""Minutes of a run whose budget is spent and that only lacks its final evaluation."""
PLACEMENT = (
    "run.folder",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.wait_seconds",
    "rollout.cpus",
    "rollout.gpus",
    "rollout.gpu_memory",
    "learner.cpus",
    "learner.gpus",
    "learner.threads",
)


class State(StrEnum):
    """State of a run."""

    NEW = "new"
    BEGUN = "begun"
    FINISHED = "finished"
    CHANGED = "changed"
    """Run with other settings than those of the study now."""
    FAILED = "failed"
    """Ended by an error."""


def state(cell: Cell) -> State:
    """State of the cell's run. Raises CheckpointError or ConfigurationError if its folder is damaged."""
    if not (cell.folder / CONFIG).is_file():
        return State.FAILED if (cell.folder / FAILED).is_file() else State.NEW
    if difference(cell) is not None:
        return State.CHANGED
    if "end" in read_summary(cell.folder):
        return State.FINISHED
    return State.FAILED if (cell.folder / FAILED).is_file() else State.BEGUN


def difference(cell: Cell) -> tuple[str, Any, Any] | None:
    """The first setting in which the existing run differs from the cell: (key, value of the run, value of the cell)."""
    held, wanted = (_compared(settings) for settings in (resumed_settings(cell.folder), cell.settings))
    for key in sorted(held.keys() | wanted.keys()):
        if held.get(key) != wanted.get(key):
            return key, held.get(key), wanted.get(key)
    return None


def check_unchanged(cells: Sequence[Cell]) -> None:
    """Raises ConfigurationError with the first run that has other settings."""
    for cell in cells:
        found = difference(cell) if (cell.folder / CONFIG).is_file() else None
        if found is not None:
            key, held, wanted = found
            raise ConfigurationError(
                f"the run {str(cell.folder)!r} has {key}: {held!r}, but the study has {wanted!r}; "
                "give --fresh to replace changed runs, or another --runs folder"
            )


def complete(cell: Cell, view: View, threads: int | None = None) -> bool:
    """Complete the cell's run. Returns whether it completed. Ray has to be connected.

    Errors are written into the run's folder, not raised. `threads`: threads of the learner if the cell does not set them.
    """
    try:
        with run_lock(cell.folder):
            settings, resume = _begin(cell)
            _run(_with_threads(settings, threads), view, resume)
    except Exception as error:  # the study reports any error and continues
        record_failure(cell, error)
        return False
    return True


def record_failure(cell: Cell, error: Exception) -> None:
    """Write the error that ended a run into its folder."""
    lines = [" ".join(str(error).split())] if isinstance(error, MtrlError) else _defect(error)
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / FAILED).write_text("\n".join(lines) + "\n")


def failure(cell: Cell) -> str | None:
    """The error message of the cell's run; None if it did not fail."""
    path = cell.folder / FAILED
    return path.read_text().partition("\n")[0] if path.is_file() else None


def read_summary(folder: Path) -> dict[str, Any]:
    """`summary.json` of a run's folder; empty if there is none yet."""
    path = folder / SUMMARY
    summary: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return summary


def trained_seconds(folder: Path) -> float:
    """Total seconds of the recorded iterations of a run."""
    return sum(row.get(SECONDS) or 0.0 for row in read_metrics(folder))


def _defect(error: Exception) -> list[str]:
    """The error in one line, and its traceback. The text of an actor's error is its remote traceback, with the error last."""
    from ray.exceptions import RayTaskError

    said = str(error).strip()
    sentence = said.splitlines()[-1] if isinstance(error, RayTaskError) else f"{type(error).__name__}: {said}"
    return [" ".join(sentence.split())[:400], "", *traceback.format_exception(error)]


def _begin(cell: Cell) -> tuple[Settings, bool]:
    """The settings for the run, and whether it is continued."""
    standing = state(cell)
    (cell.folder / FAILED).unlink(missing_ok=True)
    if standing in (State.BEGUN, State.FAILED) and (cell.folder / CONFIG).is_file():
        return _with_remaining_minutes(resumed_settings(cell.folder), cell.folder), True
    prepare(cell.settings, fresh=standing is State.CHANGED, command=cell.command)
    return cell.settings, False


def _run(settings: Settings, view: View, resume: bool) -> None:
    from mtrl_ray.run.trainer import run

    run(settings, view, resume)


def _with_remaining_minutes(settings: Settings, folder: Path) -> Settings:
    minutes = settings.run.minutes
    if minutes is None:
        return settings
    left = max(minutes - trained_seconds(folder) / 60, NO_TIME_LEFT)
    return settings.model_copy(update={"run": settings.run.model_copy(update={"minutes": left})})


def _with_threads(settings: Settings, threads: int | None) -> Settings:
    if threads is None or settings.learner.threads is not None:
        return settings
    return settings.model_copy(update={"learner": settings.learner.model_copy(update={"threads": threads})})


def _compared(settings: Settings) -> dict[str, Any]:
    """Settings by dotted path, without those of `PLACEMENT`."""
    flat = _flat(settings.model_dump(mode="json"), "")
    return {
        key: value for key, value in flat.items() if not any(f"{key}.".startswith(f"{left}.") for left in PLACEMENT)
    }


def _flat(tree: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
