"""The actors of one run: weight store, replay buffer, rollout workers, learners. Created here, and replaced if they are lost.

Store and buffer live on the driver's node and end with it; workers and learners run where Ray finds room. Ray restarts a lost
buffer, which is then as it was, and repeats the calls that were under way.

`repair` replaces what was lost and keeps what still answers, because engines and learners take seconds to start. An actor that
does not answer within `waiting.ANSWER_SECONDS` counts as lost and is killed. After a repair nothing is in flight and no
version of the weights is published: the caller brings learner and buffer back to a checkpoint, and publishes.

If the settings ask for a spare learner, it takes the place of a lost one, and the next spare is started. The fleet has its own
spare workers (`rollout.worker_pool`).
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mtrl_ray.learner.group import LearnerGroup
from mtrl_ray.processes.waiting import ANSWER_SECONDS, fetch, responsive
from mtrl_ray.processes.writing import writing
from mtrl_ray.replay.buffer import ReplayBuffer
from mtrl_ray.rollout.fleet import Fleet
from mtrl_ray.rollout.results import FleetStatistics
from mtrl_ray.settings.tree import Settings
from mtrl_ray.weights.store import read_files, start_store

NOTES = ".buffer"
"""In the run's folder: the replay buffer's notes, for it to be made again after."""
RESTARTS, REPEATS = 20, 3
"""Of the replay buffer, and of a call during which it is lost; past them it is a failure (`recovery`)."""


class Actors:
    """Handles of `store` and `buffer`, the `fleet`, the `learner` group. `say`: see `Fleet`."""

    def __init__(self, settings: Settings, folder: Path, model_path: str, say: Callable[[str], object]) -> None:
        self._settings, self._folder, self._model_path, self._say = settings, folder, model_path, say
        self._notes = folder / NOTES
        self._here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.store = self._new_store()
        self.buffer = self._new_buffer()
        self.fleet = self._new_fleet()
        self.learner = self._new_learner()
        self.learner.wait()
        self._spare = self._new_spare()

    def repair(self) -> list[str]:
        """Replace what was lost; its names. Raises EngineError if that fails."""
        made = []
        if responsive([self.store.rewind.remote()], ANSWER_SECONDS):
            self.fleet.abandon()
        else:
            self.fleet.stop()
            ray.kill(self.store)
            self.store = self._new_store()
            self.fleet = self._new_fleet(self.fleet.statistics)
            made += ["weight store", "rollout workers"]
        if not responsive([self.buffer.problems.remote()], ANSWER_SECONDS):
            ray.kill(self.buffer)
            self.buffer = self._new_buffer()
            made.append("replay buffer")
        if not self.learner.responsive(ANSWER_SECONDS):
            self.renew_learner()
            made.append("learner")
        return made

    def replace_lost_spare(self) -> None:
        """Replace a spare learner that was lost."""
        if self._spare is not None and self._spare.failed():
            self._say("the spare learner was lost, another is started")
            self._spare.stop()
            self._spare = self._new_spare()

    def renew_learner(self) -> None:
        """Replace the learner with one in its initial state: the spare, if it answers."""
        self.learner.stop()
        spare, self._spare = self._spare, None
        if spare is not None and not spare.responsive(ANSWER_SECONDS):
            spare.stop()
            spare = None
        self.learner = spare or self._new_learner()
        self.learner.wait()
        self._spare = self._new_spare()

    def stop(self) -> None:
        """End all of them."""
        self.fleet.stop()
        for learner in (self.learner, self._spare):
            if learner is not None:
                learner.stop()
        for actor in (self.buffer, self.store):
            ray.kill(actor)
        shutil.rmtree(self._notes, ignore_errors=True)

    def _new_store(self) -> Any:
        store = start_store(scheduling_strategy=self._here)
        fetch(store.keep_files.remote(read_files(self._model_path)), "the weight store to take the model's files")
        return store

    def _new_buffer(self) -> Any:
        replay = self._settings.replay
        with writing(self._notes):
            if self._notes.exists():
                shutil.rmtree(self._notes)
        buffer = ray.remote(ReplayBuffer).options(
            num_cpus=0, scheduling_strategy=self._here, max_restarts=RESTARTS, max_task_retries=REPEATS
        )
        return buffer.remote(
            str(self._folder / "journal"),
            max_bytes=int(replay.max_gib * 2**30),
            max_staleness=replay.max_staleness,
            notes=str(self._notes),
        )

    def _new_fleet(self, statistics: FleetStatistics | None = None) -> Fleet:
        return Fleet(self._settings, self._model_path, self.store, self._say, statistics)

    def _new_learner(self) -> LearnerGroup:
        settings = self._settings
        return LearnerGroup(
            settings.learner,
            settings.model,
            self._model_path,
            seed=settings.run.seed,
            temperature=settings.rollout.temperature,
        )

    def _new_spare(self) -> LearnerGroup | None:
        return self._new_learner() if self._settings.learner.spare else None
