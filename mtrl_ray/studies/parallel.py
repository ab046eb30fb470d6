"""Parallel runs of a study, each one a trial of Ray Tune.

1. A trial is one run, from its first evaluation to its report, by the same `trainer.run` as everywhere. Resuming,
   refusing and recording runs does not depend on how a study is scheduled.
2. The placement group of a trial has a bundle for each actor of the run, so a run that starts can also continue. Tune
   starts as many trials as fit, up to the requested number.
3. The runs' folders are the only state; nothing of Tune's is read again. On several nodes they have to be on a shared
   disk.
4. Ctrl-C makes Tune end the trials; iterations without a checkpoint are repeated when the study is continued.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from mtrl_envs.registry import make
from mtrl_ray.errors import EngineError
from mtrl_ray.monitoring.live import LiveView
from mtrl_ray.monitoring.view import Silent
from mtrl_ray.run.tiny_model import tiny_model
from mtrl_ray.settings.tree import TINY, Settings
from mtrl_ray.studies.cells import Cell
from mtrl_ray.studies.progress import Progress
from mtrl_ray.studies.runs import State, complete, failure, record_failure, state

SCRATCH = ".tune"
"""Folder of Tune's records, next to the runs' folders; removed at the end."""
SHOWN = ("collect/score_mean", "evaluation/mean")
"""Metrics reported to Tune, and so to Ray's dashboard."""


def run_side_by_side(cells: Sequence[Cell], parallel: int, progress: Progress, ended: Callable[[], None]) -> None:
    """Complete the run of every cell, `parallel` at a time. Ray has to be connected.

    Raises KeyboardInterrupt if Tune was interrupted.
    """
    _make_models(cells)
    threads = max(1, int(ray.cluster_resources().get("CPU", 1.0)) // parallel)
    scratch = (cells[0].folder.parent / SCRATCH).absolute()
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new output ignores `verbose`
    tuner = tune.Tuner(
        tune.with_resources(_trial(cells, threads, Path.cwd()), _bundles([cell.settings for cell in cells])),
        param_space={"run": tune.grid_search([cell.name for cell in cells])},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=parallel,
            trial_name_creator=lambda trial: trial.config["run"],
            trial_dirname_creator=lambda trial: trial.config["run"],
        ),
        run_config=tune.RunConfig(
            name="study", storage_path=str(scratch), verbose=0, callbacks=[_Watcher(cells, progress, ended)]
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if any(state(cell) is not State.FINISHED and failure(cell) is None for cell in cells):
        raise KeyboardInterrupt


class _Reports(Silent):
    """The view of a run in a trial; reports its iterations to Tune as results."""

    def iteration(self, number: int, metrics: Mapping[str, float]) -> None:
        tune.report({"iteration": number, **{key: metrics[key] for key in SHOWN if key in metrics}})


class _Watcher(tune.Callback):
    """Reports the start and the end of trials to `Progress`."""

    def __init__(self, cells: Sequence[Cell], progress: Progress, ended: Callable[[], None]) -> None:
        self._cells = {cell.name: cell for cell in cells}
        self._progress, self._ended = progress, ended

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._progress.begin(self._cells[trial.config["run"]])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        cell = self._cells[trial.config["run"]]
        self._progress.end(cell, state(cell) is State.FINISHED)
        self._ended()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        cell = self._cells[trial.config["run"]]
        record_failure(cell, EngineError(f"its process was lost: {_last_line(trial)}"))
        self._progress.end(cell, completed=False)
        self._ended()


def _trial(cells: Sequence[Cell], threads: int, here: Path) -> Callable[[dict[str, Any]], None]:
    """The function that Tune calls: it completes the run named in its config, in the study's working directory."""
    named = {cell.name: cell for cell in cells}

    def trial(config: dict[str, Any]) -> None:
        os.chdir(here)  # Tune starts in another folder; settings can have relative paths
        complete(named[config["run"]], _Reports(), threads)

    return trial


def _bundles(settings: Sequence[Settings]) -> tune.PlacementGroupFactory:
    """Bundles of the largest run: an empty one for its driver, and one for every worker and every learner."""

    def bundles(one: Settings) -> list[dict[str, float]]:
        worker = {"CPU": one.rollout.cpus, "GPU": one.rollout.gpus}
        learner = {"CPU": one.learner.cpus, "GPU": one.learner.gpus}
        return [worker] * one.rollout.bounds[1] + [learner] * one.learner.processes

    largest = max((bundles(one) for one in settings), key=lambda many: sum(sum(one.values()) for one in many))
    return tune.PlacementGroupFactory([{}, *({key: n for key, n in one.items() if n} for one in largest)])


def _make_models(cells: Sequence[Cell]) -> None:
    """Create the tiny models that the runs start from once, instead of in every trial at the same time.

    If this fails, the runs that need the model try again and record the failure.
    """
    for settings in (cell.settings for cell in cells if cell.settings.model.path == TINY):
        with contextlib.suppress(Exception):
            environment = make(settings.environment.name, **settings.environment.options)
            with LiveView(settings.run.name, 0, table=False) as view:
                tiny_model(settings.model, settings.environment, environment, view, settings.rollout)


def _last_line(trial: Any) -> str:
    said = [line for line in str(trial.get_error() or "").splitlines() if line.strip()]
    return said[-1].strip()[:300] if said else "no more is known"
