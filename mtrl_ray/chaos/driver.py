"""The process whose run is disturbed: `python -m mtrl_ray.chaos.driver RUN ADDRESS`.

1. It is `mtrl train`, or `--resume` where the run exists. On standard output it reports the fleet's state as JSON
   lines, whenever that changes; what others print there (Ray does, when an actor dies) goes to standard error.
2. A line `engine` on standard input makes one worker's engine raise at its next step: the one fault that no signal causes.
"""

import json
import os
import random
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
from mtrl_ray.rollout.members import Members
from mtrl_ray.rollout.worker import RolloutWorker
from mtrl_ray.trainer import Trainer, run

REPORT_SECONDS = 0.1
LOOK_SECONDS = 1.0
"""Between two looks at Ray's list of actors."""
HELD = (RolloutWorker.__name__, LearnerActor.__name__)
"""Classes of the actors that a lost node takes with it."""
BUFFER = ReplayBuffer.__name__


@dataclass(frozen=True)
class State:
    """`iteration`s done, `recoveries` so far, workers `wanted` and `ready`; `leases`: chunks handed out since it began.

    `joined`: when the last engine that has got work since was ready (`time.time`). `nodes`: that hold a worker or a learner,
    the driver's left out. `buffer`: the replay buffer's process, 0 where it has none just now.
    """

    pid: int
    iteration: int
    recoveries: int
    wanted: int
    ready: int
    leases: int
    joined: float
    nodes: list[str]
    buffer: int


class Reports:
    """Counts what the workers get, over their deaths."""

    def __init__(self, trainer: Trainer, output: IO[str]) -> None:
        self._trainer, self._output = trainer, output
        self._given: dict[tuple[int, float], int] = {}  # worker and when its engine was ready: chunks
        self._nodes: list[str] = []
        self._buffer, self._looked = 0, 0.0

    def state(self) -> State:
        """As it is now."""
        members: Members = self._trainer.system.fleet.members
        ready = members.ready()
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._look()
        self._given |= {(member.number, member.up): member.given for member in ready}
        return State(
            os.getpid(),
            self._trainer.system.iteration,
            self._trainer.recovery.total,
            members.wanted,
            len(ready),
            sum(self._given.values()),
            max((member.up for member in ready if member.given), default=0.0),
            self._nodes,
            self._buffer,
        )

    def _look(self) -> None:
        own = ray.get_runtime_context().get_job_id()
        alive = [one for one in ray_state.actors().values() if one["State"] == "ALIVE" and one["JobID"] == own]
        held = {actor["Address"]["NodeID"] for actor in alive if actor["ActorClassName"] in HELD}
        self._nodes = sorted(held - {ray.get_runtime_context().get_node_id()})
        self._buffer = next((actor["Pid"] for actor in alive if actor["ActorClassName"] == BUFFER), 0)
        self._looked = time.monotonic()

    def keep_telling(self) -> None:
        """Write a line for every change, for ever."""
        before = None
        while True:
            state = self.state()
            if state != before:
                self._output.write(json.dumps({"time": time.time()} | asdict(state)) + "\n")
                self._output.flush()
                before = state
            time.sleep(REPORT_SECONDS)


def obey(trainer: Trainer) -> None:
    """Break engines as often as standard input says."""
    for line in sys.stdin:
        ready = trainer.system.fleet.members.ready()
        if line.strip() == "engine" and ready:
            random.choice(ready).actor.__ray_call__.remote(break_engine)


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
    from cluster.session import connected
    from mtrl_ray.run_folder import resumed_settings
    from mtrl_ray.run_lock import driven

    settings = resumed_settings(folder)
    output = own_output()

    def watch(trainer: Trainer) -> None:
        for work in (Reports(trainer, output).keep_telling, lambda: obey(trainer)):
            threading.Thread(target=work, daemon=True).start()

    begun = any((folder / name).exists() for name in ("journal", "checkpoints"))
    with driven(folder), connected(settings, address):
        run(settings, Silent(), resume=begun, watch=watch)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
