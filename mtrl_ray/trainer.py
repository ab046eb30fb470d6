"""The loop: iterate, record, checkpoint, and begin again where a run was left.

`Trainer` is a `ray.tune.Trainable`, so Tune can schedule many of them; `run` drives one to its end with the evaluations
before and after, the summary and the report. It knows nothing of any algorithm.
"""

import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.exceptions import RayError, RayTaskError

from envs.registry import make
from mtrl_ray import checkpoint
from mtrl_ray.algorithms.registry import make_algorithm
from mtrl_ray.config import Settings, validate
from mtrl_ray.errors import EngineError, MtrlError
from mtrl_ray.evaluation import holdout
from mtrl_ray.models.tiny import TINY, tiny_model
from mtrl_ray.monitoring.recorder import Recorder
from mtrl_ray.monitoring.report import write_report
from mtrl_ray.monitoring.view import Silent, View
from mtrl_ray.system import System

BUDGET_SLACK = 1.0
"""An iteration is begun while at least this many times the last one's duration is left of `run.minutes`."""


class Trainer(tune.Trainable):
    """One run. `config`: `settings` (a plain tree) and optionally `resume` (bool)."""

    def __init__(self, config: dict[str, Any] | None = None, storage: Any = None, view: View | None = None) -> None:
        self.view: View = view or Silent()
        super().__init__(config, storage)

    def setup(self, config: dict[str, Any]) -> None:
        """Make or find the model, start the actors, restore the newest checkpoint where the run is resumed."""
        self.settings = validate(config["settings"], "settings")
        self.folder = self.settings.run_folder
        self.environment = make(self.settings.environment.name, **self.settings.environment.options)
        random.seed(self.settings.run.seed)
        np.random.seed(self.settings.run.seed)
        self.algorithm = make_algorithm(self.settings.algorithm)
        self.kept: int | None = None  # iteration of the newest checkpoint
        found = checkpoint.newest(self.folder / "checkpoints") if config.get("resume") else None
        self.model_path = self._model_path()
        self.recorder = Recorder(self.folder, self.settings.run.name, self.settings.monitoring)
        self.system = System(self.settings, self.folder, self.model_path, self.view)
        if found is not None:
            self._restore(*found)
        else:
            self._begin()
        self.workers = self.system.start(self.system.version + 1)

    def step(self) -> dict[str, float]:
        """One iteration; its metrics."""
        begun = time.perf_counter()
        if self.system.iteration == 0:
            self.algorithm.begin(self.system)
        self.algorithm.iterate(self.system)
        metrics = self.system.take_metrics()
        metrics["iteration/seconds"] = time.perf_counter() - begun
        self.system.iteration += 1
        return metrics

    def record(self, metrics: dict[str, float]) -> None:
        """Write an iteration's metrics where they are kept and show them."""
        self.recorder.record(self.system.iteration, metrics)
        self.view.iteration(self.system.iteration, metrics)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Everything the next iteration needs, into a folder of Tune's."""
        checkpoint.write_into(Path(checkpoint_dir), self._state(), self._save)

    def load_checkpoint(self, checkpoint_dir: str | None) -> None:
        """Continue from what `save_checkpoint` wrote, its weights published under a version of their own."""
        newest = self.system.version
        self._restore(*checkpoint.read(Path(str(checkpoint_dir))))
        self.system.version = max(newest, self.system.version)
        self.system.publish()

    def keep_checkpoint(self) -> Path:
        """Write a checkpoint into the run's folder."""
        self.view.part("learner", "saving")
        self.kept = self.system.iteration
        keep = self.settings.run.keep_checkpoints
        return checkpoint.write(self.folder / "checkpoints", self.kept, self._state(), self._save, keep)

    def cleanup(self) -> None:
        """End the actors and close the files."""
        self.system.stop()
        self.recorder.close()

    def _state(self) -> dict[str, Any]:
        return {
            "iteration": self.system.iteration,
            "version": self.system.version,
            "buffer": ray.get(self.system.buffer.state.remote()),
        }

    def _save(self, folder: Path) -> None:
        ray.get(self.system.learner.save(folder))

    def _begin(self) -> None:
        """At iteration 0. What the journal has, of a run killed before its first checkpoint, each iteration recalls itself."""
        ray.get(self.system.buffer.rebuild.remote({"ids": [], "position": 0}))
        self.recorder.rewind(0)

    def _restore(self, folder: Path, state: dict[str, Any]) -> None:
        ray.get(self.system.learner.load(str(folder)))
        ray.get(self.system.buffer.rebuild.remote(state["buffer"]))
        self.system.iteration = self.kept = int(state["iteration"])
        self.system.version = int(state["version"]) - 1
        self.recorder.rewind(self.system.iteration)
        self.view.note(f"continuing after iteration {self.system.iteration}")

    def _model_path(self) -> str:
        """The model's folder or hub name; the tiny model is copied into the run's folder, which then needs no cache."""
        if self.settings.model.path != TINY:
            return self.settings.model.path
        own = self.folder / "model"
        if not own.is_dir():
            made = tiny_model(self.settings.model, self.settings.environment, self.environment, self.view)
            scratch = own.with_name(".model.scratch")
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(made, scratch)
            scratch.rename(own)
        return str(own)


def run(settings: Settings, view: View, resume: bool = False) -> dict[str, Any]:
    """Train to the end: evaluate, iterate, evaluate again, write summary and report. Gives the summary.

    Raises the project's errors, those of actors too; EngineError where an actor died that cannot be started again.
    """
    with explained(settings.run_folder):
        trainer = Trainer({"settings": settings.model_dump(mode="json"), "resume": resume}, view=view)
        try:
            if trainer.system.iteration == 0:
                _evaluate(trainer, "start")
                _scripted(trainer)
            _train(trainer)
            _evaluate(trainer, "end")
        finally:
            trainer.stop()
    write_report(trainer.folder)
    return holdout.summarise(trainer.folder)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """An error of an actor becomes its cause where this project explains it; a defect keeps its remote traceback."""
    try:
        yield
    except RayTaskError as error:
        cause: BaseException = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, MtrlError):
            raise cause from None
        raise
    except RayError as error:
        said = " ".join(str(error).split())[:400]
        raise EngineError(
            f"the run lost an actor; mtrl train --resume {folder} continues it. Ray says: {said}"
        ) from error


def _train(trainer: Trainer) -> None:
    run_settings, every = trainer.settings.run, trainer.settings.evaluation.every
    started, last = time.monotonic(), 0.0
    trainer.view.begin()
    while trainer.system.iteration < run_settings.iterations and not _spent(run_settings.minutes, started, last):
        begun = time.monotonic()
        metrics = trainer.step()
        if every and trainer.system.iteration % every == 0:
            estimate, _ = holdout.evaluate(trainer.system, trainer.settings.evaluation.contexts)
            metrics |= {f"evaluation/{key}": value for key, value in estimate.as_dict().items()}
        trainer.record(metrics)
        if trainer.system.iteration % run_settings.checkpoint_every == 0:
            trainer.keep_checkpoint()
        last = time.monotonic() - begun
    if trainer.kept != trainer.system.iteration:
        trainer.keep_checkpoint()


def _spent(minutes: float | None, started: float, last: float) -> bool:
    return minutes is not None and time.monotonic() - started + BUDGET_SLACK * last > 60 * minutes


def _evaluate(trainer: Trainer, name: str) -> None:
    estimate, table = holdout.evaluate(trainer.system, trainer.settings.evaluation.contexts)
    holdout.keep(trainer.folder, name, table)
    spoken = holdout.well_formed(trainer.environment, table)
    holdout.summarise(trainer.folder, **{name: estimate, f"{name}_well_formed": spoken})
    trainer.view.note(
        f"{name}: {estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}] on {estimate.n} contexts, "
        f"{spoken.mean:.1%} of its turns well-formed"
    )


def _scripted(trainer: Trainer) -> None:
    contexts = trainer.settings.evaluation.contexts
    estimates = {agent: holdout.scripted(trainer.environment, agent, contexts) for agent in holdout.SCRIPTED}
    holdout.summarise(trainer.folder, **estimates)
    for agent, estimate in estimates.items():
        trainer.view.note(f"{agent}: {estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]")
