"""The training loop: iterate, record, checkpoint, and resume.

`Trainer` does one iteration after another and knows nothing of any algorithm. `run` drives it to its end, with the evaluations
before and after, the summary and the report.

If the machinery fails, `run` repairs it, goes back to the newest checkpoint and repeats what followed, under the same
identities and seeds (`recovery`). The setup does the same while it loads a checkpoint. A stop signal ends the run with a
checkpoint (`stopping`).

A checkpoint holds what the next iteration depends on: the learner's models, optimisers, counters and random states, the
buffer's index and position in the journal, this process's random states, the algorithm's state, the iteration, and the metrics
so far, to which the run's are brought back. Leases are not in it: they follow from the seed and the iteration.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.exceptions import RayError, RayTaskError

from mtrl_envs.registry import make
from mtrl_ray.algorithms.registry import make_algorithm
from mtrl_ray.errors import CheckpointError, EngineError
from mtrl_ray.evaluation import holdout
from mtrl_ray.monitoring.alarms import Alarms
from mtrl_ray.monitoring.recorder import Recorder, read_metrics
from mtrl_ray.monitoring.report import write_report
from mtrl_ray.monitoring.view import Silent, View
from mtrl_ray.processes import failures
from mtrl_ray.run import checkpoint, random_state
from mtrl_ray.run.checkpoint_store import store_of
from mtrl_ray.run.ending import Budget, Target
from mtrl_ray.run.recovery import Recovery
from mtrl_ray.run.stopping import GRACE_SECONDS, StopSignal
from mtrl_ray.run.tiny_model import tiny_model
from mtrl_ray.settings.tree import TINY, Settings
from mtrl_ray.system.system import System

RECOVERIES = 20
"""Failures of the machinery in a row, no iteration finished in between, after which the run gives up. The pauses between them
(`recovery`) add up to a quarter of an hour."""


class Trainer:
    """One run: its model, its actors, and its place. The constructor starts the actors and publishes the first weights."""

    def __init__(self, settings: Settings, resume: bool = False, view: View | None = None) -> None:
        """Continue from the newest checkpoint if `resume` and there is one; otherwise begin at iteration 0."""
        self.view: View = view or Silent()
        self.settings = settings
        self.folder = settings.run_folder
        self.environment = make(settings.environment.name, **settings.environment.options)
        random_state.seed(settings.run.seed)
        self.algorithm = make_algorithm(settings.algorithm)
        self.kept: int | None = None  # iteration of the newest checkpoint
        self.checkpoints = store_of(settings)
        self.model_path = self._model_path()
        self.recovery = Recovery(RECOVERIES, self.view.note)
        self.recorder = Recorder(self.folder, settings.run.name)
        self._alarms = Alarms()
        self.view.part("system", "starting replay buffer, workers and learner")
        self.system = System(settings, self.folder, self.model_path, self.view)
        try:
            self.recovery.carry(lambda: self._open(resume), self._repair)
            self.recovery.progressed()
            self.view.part("system", "")
            self.workers = self.system.start()
        except BaseException:
            self.stop()
            raise

    def step(self) -> dict[str, float]:
        """One iteration; its metrics."""
        begun, scaling = time.perf_counter(), self.system.scaling
        if scaling is not None:
            scaling.begin()
        if self.system.iteration == 0:
            self.algorithm.begin(self.system)
        self.algorithm.iterate(self.system)
        metrics = self.system.take_metrics()
        metrics["iteration/seconds"] = time.perf_counter() - begun
        metrics["faults/recoveries"] = float(self.recovery.total)
        if scaling is not None:
            metrics |= scaling.follow(metrics)
        self.system.next_iteration()
        return metrics

    def record(self, metrics: dict[str, float]) -> None:
        """Write an iteration's metrics to the run's folder and show them."""
        self.recorder.record(self.system.iteration, metrics)
        self.view.iteration(self.system.iteration, metrics)
        for sentence in self._alarms.hear(self.system.iteration, metrics):
            self.view.note(f"iteration {self.system.iteration}: {sentence}")

    def keep_checkpoint(self) -> None:
        """Write a checkpoint to the run's checkpoint store."""
        self.view.part("learner", "saving")
        iteration, keep = self.system.iteration, self.settings.run.keep_checkpoints
        self.checkpoints.write(iteration, self._state(), self._save, keep)
        self.kept = iteration

    def recover(self) -> None:
        """Make lost actors again and go back to the newest checkpoint, or to the beginning if there is none."""
        made = self._repair()
        self.algorithm = make_algorithm(self.settings.algorithm)
        if not self.checkpoints.restore(self._restore):
            if "learner" not in made:
                self.system.renew_learner()
            random_state.seed(self.settings.run.seed)
            self._begin()
        self.system.publish()

    def stop(self) -> None:
        """End the actors and close the files."""
        self.system.stop()
        self.recorder.close()

    def _state(self) -> dict[str, Any]:
        state = {**self.system.state(), "random": random_state.state(), "recoveries": self.recovery.total}
        return state | {"algorithm": self.algorithm.state()}

    def _save(self, folder: Path) -> None:
        self.system.save(folder)
        self.recorder.keep(folder)

    def _open(self, resume: bool) -> None:
        """Go to the newest checkpoint if the run is resumed and has one, else to the beginning; publish the weights."""
        if not (resume and self.checkpoints.restore(self._restore)):
            self._begin()
        self.system.publish()

    def _repair(self) -> list[str]:
        made = self.system.repair()
        self.view.note(f"made again: {', '.join(made) or 'nothing, all actors answer'}")
        return made

    def _begin(self) -> None:
        """Go to iteration 0. An iteration takes over what the journal already has of it."""
        self.system.reset()
        self._rewind(None)

    def _restore(self, folder: Path, state: dict[str, Any]) -> None:
        self.system.restore(folder, state)
        try:
            random_state.restore(state["random"])
            self.recovery.total = max(self.recovery.total, int(state["recoveries"]))
            self.algorithm.restore(state.get("algorithm", {}))  # version 0.1 had none
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint {folder}: its {checkpoint.STATE} is not of this version: {error!r}"
            ) from None
        self.kept = self.system.iteration
        self._rewind(folder)
        self.view.note(f"continuing after iteration {self.system.iteration}")

    def _rewind(self, kept: Path | None) -> None:
        """Bring what was recorded back to this iteration."""
        self.recorder.rewind(self.system.iteration, kept)
        self._alarms = Alarms((row["iteration"], row) for row in read_metrics(self.folder))

    def _model_path(self) -> str:
        """The model's folder or hub name; the tiny model is copied into the run's folder, which then needs no cache."""
        if self.settings.model.path != TINY:
            return self.settings.model.path
        own = self.folder / "model"
        if not own.is_dir():
            made = tiny_model(
                self.settings.model, self.settings.environment, self.environment, self.view, self.settings.rollout
            )
            scratch = own.with_name(".model.scratch")
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(made, scratch)
            scratch.rename(own)
        return str(own)


def run(
    settings: Settings, view: View, resume: bool = False, watch: Callable[[Trainer], object] | None = None
) -> dict[str, Any]:
    """Train to the end: evaluate, iterate, evaluate again, write summary and report. Gives the summary.

    `watch` gets the trainer once its actors run, before the first evaluation.
    Raises the project's errors, those of actors too; EngineError if the machinery fails again and again; `Stopped`
    after a stop signal.
    """
    stop = StopSignal(ends_process=True)
    with explained(settings.run_folder), stop.listening():
        trainer = Trainer(settings, resume, view)
        budget = Budget(settings.run.minutes)
        try:
            if watch is not None:
                watch(trainer)
            trainer.recovery.carry(lambda: _whole(trainer, budget, stop), trainer.recover)
        except KeyboardInterrupt:
            view.note(_standing(trainer))
            raise
        finally:
            trainer.stop()
    write_report(trainer.folder)
    return holdout.summarise(trainer.folder)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """An error of an actor becomes its cause if this project explains it; a defect keeps its remote traceback."""
    try:
        yield
    except RayError as error:
        ours = failures.explained(error)
        if ours is None:
            raise
        if isinstance(error, RayTaskError):
            raise ours from None
        raise EngineError(f"{ours}; mtrl train --resume {folder} continues the run") from error


def _whole(trainer: Trainer, budget: Budget, stop: StopSignal) -> None:
    if trainer.system.iteration == 0:
        _evaluate(trainer, "start")
        _scripted(trainer)
    _train(trainer, budget, stop)
    _evaluate(trainer, "end")


def _train(trainer: Trainer, budget: Budget, stop: StopSignal) -> None:
    run_settings = trainer.settings.run
    budget.begin(trainer.view)
    target = Target.of(run_settings.until_gap, trainer.folder, trainer.view.note)
    while trainer.system.iteration < run_settings.iterations and not budget.spent() and not target.reached:
        begun = time.monotonic()
        with stop.answered("grace"):
            metrics = trainer.step() | _tried(trainer)
        with stop.answered("held"):
            trainer.record(metrics)
            target.add(metrics)
            due = trainer.system.iteration % run_settings.checkpoint_every == 0
            if due or stop.number is not None or time.monotonic() - begun > GRACE_SECONDS:
                trainer.keep_checkpoint()
        stop.check()
        trainer.recovery.progressed()
        budget.last = time.monotonic() - begun
    if target.reached:
        trainer.view.note(target.said())
    if trainer.kept != trainer.system.iteration:
        with stop.answered("held"):
            trainer.keep_checkpoint()
        stop.check()


def _tried(trainer: Trainer) -> dict[str, float]:
    """The policy's score on held-out contexts, if it is due."""
    every = trainer.settings.evaluation.every
    if not every or trainer.system.iteration % every:
        return {}
    estimate, _ = holdout.evaluate(trainer.system, trainer.settings.evaluation.contexts)
    return {f"evaluation/{key}": value for key, value in estimate.as_dict().items()}


def _standing(trainer: Trainer) -> str:
    """What a stopped run has, in a sentence."""
    done, kept = trainer.system.iteration, trainer.kept
    if kept is None:
        return "stopped before the first checkpoint; a resumed run begins again with the conversations it has"
    repeated = f"; the {done - kept} after it will be repeated" if done > kept else ""
    return f"stopped; the checkpoint of iteration {kept} is kept{repeated}"


def _evaluate(trainer: Trainer, name: str) -> None:
    contexts = trainer.settings.evaluation.contexts
    estimate, table = holdout.evaluate(trainer.system, contexts)
    holdout.keep(trainer.folder, name, table)
    spoken = holdout.well_formed(trainer.environment, table)
    greedily, _ = holdout.evaluate(trainer.system, contexts, greedy=True)
    estimates = {name: estimate, f"{name}_greedy": greedily, f"{name}_well_formed": spoken}
    holdout.summarise(trainer.folder, **estimates)
    trainer.view.note(
        f"{name}: {estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}] on {estimate.size('contexts')}, "
        f"{greedily.mean:.3f} with the likeliest tokens, {spoken.mean:.1%} of its turns well-formed"
    )


def _scripted(trainer: Trainer) -> None:
    settings = trainer.settings
    trainer.view.part("evaluation", f"scripted agents on {settings.evaluation.contexts} contexts")
    estimates = holdout.baselines(trainer.environment, settings.evaluation.contexts, settings.rollout)
    trainer.view.part("evaluation", "")
    holdout.summarise(trainer.folder, **estimates)
    for agent, estimate in estimates.items():
        trainer.view.note(f"{agent}: {estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]")
