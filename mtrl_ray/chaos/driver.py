"""The process whose run is disturbed: `python -m mtrl_ray.chaos.driver RUN ADDRESS`.

1. It is `mtrl train`, or `--resume` if the run exists. On standard output it reports the fleet's state as JSON
   lines, whenever that changes; what others print there (Ray does, when an actor dies) goes to standard error.
2. A line `engine PID` on standard input makes that worker's engine raise at its next step: the one fault that no signal causes.
"""

import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import ray
from ray._private import state as ray_state

from mtrl_ray.learner.group import LearnerActor
from mtrl_ray.monitoring.view import Silent
from mtrl_ray.replay.buffer import ReplayBuffer
from mtrl_ray.rollout.worker import RolloutWorker
from mtrl_ray.rollout.worker_pool import WorkerPool
from mtrl_ray.run.trainer import Trainer, run

REPORT_SECONDS = 0.1
LOOK_SECONDS = 0.5
"""Between two looks at Ray's list of actors."""


@dataclass(frozen=True)
class State:
    """As far as the driver knows. Numbers of processes: `pid` (its own), `workers` (that can take work), `learners` and
    `buffers` (as Ray lists them), `spare` (those of them that are), `nodes` (those of workers and learners, by node, the
    driver's left out). `missing`: how many there should be besides.

    `iteration`s done; `leases`: chunks handed out since it began.
    """

    pid: int
    iteration: int
    leases: int
    missing: int
    workers: list[int]
    learners: list[int]
    buffers: list[int]
    spare: list[int]
    nodes: dict[str, list[int]]

    @property
    def processes(self) -> set[int]:
        """All of them."""
        return {self.pid, *self.workers, *self.learners, *self.buffers}


class Reports:
    """Counts what the workers get, over their deaths."""

    def __init__(self, trainer: Trainer, output: IO[str]) -> None:
        self._trainer, self._output = trainer, output
        self._given: dict[tuple[int, float], int] = {}  # worker and when its engine was ready: chunks
        self._actors: list[dict[str, Any]] = []
        self._looked = -LOOK_SECONDS
        self._job, self._home = ray.get_runtime_context().get_job_id(), ray.get_runtime_context().get_node_id()

    def state(self) -> State:
        """As it is now."""
        system, settings = self._trainer.system, self._trainer.settings.learner
        pool: WorkerPool = system.fleet.pool
        ready = pool.ready()
        self._given |= {(worker.number, worker.up): worker.given for worker in ready}
        if time.monotonic() - self._looked > LOOK_SECONDS:
            listed = ray_state.actors().values()
            self._actors = [one for one in listed if one["State"] == "ALIVE" and one["JobID"] == self._job]
            self._looked = time.monotonic()
        workers = [worker.pid for worker in ready]
        learners, buffers = self._processes(LearnerActor), self._processes(ReplayBuffer)
        wanted = pool.wanted + pool.spares + settings.processes * (1 + settings.spare) + 1
        at_work = {*(worker.pid for worker in pool.active()), *system.learner.processes}
        return State(
            pid=os.getpid(),
            iteration=system.iteration,
            leases=sum(self._given.values()),
            missing=max(0, wanted - len(workers) - len(learners) - len(buffers)),
            workers=workers,
            learners=learners,
            buffers=buffers,
            spare=sorted({*workers, *learners} - at_work),
            nodes=self._nodes(),
        )

    def _processes(self, *classes: type, node: str | None = None) -> list[int]:
        """Of the actors of these classes, on one node or on any."""
        names = {one.__name__ for one in classes}
        those = [one for one in self._actors if one["ActorClassName"] in names]
        return sorted(one["Pid"] for one in those if node in (None, one["Address"]["NodeID"]))

    def _nodes(self) -> dict[str, list[int]]:
        nodes = {actor["Address"]["NodeID"] for actor in self._actors} - {self._home}
        held = {node: self._processes(RolloutWorker, LearnerActor, node=node) for node in sorted(nodes)}
        return {node: processes for node, processes in held.items() if processes}

    def keep_telling(self) -> None:
        """Write a line for every change, endlessly."""
        before = None
        while True:
            state = self.state()
            if state != before:
                self._output.write(json.dumps({"time": time.time()} | asdict(state)) + "\n")
                self._output.flush()
                before = state
            time.sleep(REPORT_SECONDS)


def obey(trainer: Trainer) -> None:
    """Break the engines that standard input names."""
    for line in sys.stdin:
        for worker in trainer.system.fleet.pool.ready():
            if line.split() == ["engine", str(worker.pid)]:
                worker.actor.__ray_call__.remote(break_engine)


def break_engine(worker: Any) -> None:
    """Make a worker's engine raise at its next step."""

    def step() -> list[Any]:
        raise RuntimeError("broken on purpose")

    worker._loop._engine.step = step


def own_output() -> IO[str]:
    """Standard output for the reports alone."""
    mine = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return mine


def main(folder: Path, address: str) -> None:
    """Begin or continue the run."""
    from mtrl_ray.processes.session import connected
    from mtrl_ray.run.folder import resumed_settings
    from mtrl_ray.run.lock import run_lock

    settings = resumed_settings(folder)
    output = own_output()

    def watch(trainer: Trainer) -> None:
        for work in (Reports(trainer, output).keep_telling, lambda: obey(trainer)):
            threading.Thread(target=work, daemon=True).start()

    begun = any((folder / name).exists() for name in ("journal", "checkpoints"))
    with run_lock(folder), connected(settings, address):
        run(settings, Silent(), resume=begun, watch=watch)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
