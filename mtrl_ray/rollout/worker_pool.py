"""The fleet's workers: they join, fail, recover and leave while work goes on.

- *Joining.* `want` sets how many there should be. A missing worker is started at once; if the cluster has no room, its pending
  actor makes Ray's autoscaler add a node. It has joined when it answers `ready`, its engine running under the newest weights.
  Before that it gets no work. The `wanted` workers that joined first get work; `spares` more stand by to replace one that
  fails.
- *Failing.* Ray restarts a worker that fails, under the same number, and it is polled until it answers. The loss of an idle
  worker shows when a call that never returns fails, or in its next report if Ray restarted it first. A worker that Ray gives
  up is replaced under a new number, after a pause that doubles up to a minute while none joins. One that is placed on a node
  and has not answered for `START_SECONDS` is killed, and Ray restarts it.
- *Leaving.* If there are too many, workers that have not joined leave first, then those on the nodes with the fewest workers,
  so that nodes become empty and can be released; the driver's own node comes last. A worker that leaves gets no more work,
  finishes what it holds, even if one of its calls failed, and is then ended. If it is wanted again before that, it stays.

Nothing here blocks. The fleet's dispatch and the thread of `rollout.scaling` both call it.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import ray
from ray._private import state as ray_state
from ray.exceptions import ActorDiedError, RayError

from mtrl_ray.processes.failures import sentence
from mtrl_ray.processes.refs import Ref

logger = logging.getLogger(__name__)

START_SECONDS = 600.0
"""Longest start of a worker, until its engine runs."""
LOOK_SECONDS = 5.0
"""Between two checks whether a worker that does not answer is placed on a node."""
PROBE_SECONDS = 0.2
"""Between two calls to a worker that is being restarted."""
LONGEST_PAUSE = 60.0
"""Longest pause before a worker that Ray gave up is replaced."""
LOST_IDLE = "was lost while it had nothing to do, and is started again"


class Phase(StrEnum):
    """A worker's state between its start and its end."""

    STARTING = "starting"
    """It has not answered yet: no node has room, or its engine is starting."""
    READY = "ready"
    """It takes work, or is a spare."""
    UNHEALTHY = "unhealthy"
    """It failed and has not answered since."""
    LEAVING = "leaving"
    """It takes no more work and ends when it holds none."""


@dataclass
class PooledWorker:
    """A worker: its number in reports, its actor, its phase, its node.

    `up`: when its engine became ready, by its node's clock (`time.time`). `given`: pieces of work it got since. `answer`: the
    pending call of `ready`; if it failed, the next one is made from `ask_at` on. `killed`: `up` of a process that was killed,
    whose answers do not count. `pid`: of its process; `watch`: a call that fails when the process ends. `stays`: the phase to
    return to if a leaving worker is kept. `silent`: since when it could have answered; checked again from `look_at` on.
    """

    number: int
    actor: Any
    phase: Phase = Phase.STARTING
    given: int = 0
    node: str | None = None
    up: float = 0.0
    answer: Ref[dict[str, Any]] | None = None
    ask_at: float = 0.0
    killed: float = 0.0
    watch: Ref[None] | None = None
    pid: int = 0
    stays: Phase = Phase.READY
    silent: float = 0.0
    look_at: float = 0.0

    @property
    def unhealthy(self) -> bool:
        """Whether it failed and has not answered since, leaving or not."""
        return (self.stays if self.phase is Phase.LEAVING else self.phase) is Phase.UNHEALTHY


@dataclass(frozen=True)
class Slot:
    """A place for one piece of work on a worker, until it is released."""

    worker: PooledWorker
    id: int


class WorkerPool:
    """The fleet's workers. Thread-safe."""

    def __init__(
        self,
        start: Callable[[int], Any],
        home: str | None = None,
        spares: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`start(number)` returns a worker's actor; `home`: the driver's node; `spares`: workers beyond those wanted."""
        self._start, self._home, self._clock = start, home, clock
        self.spares = spares
        self._lock = threading.RLock()
        self._workers: dict[int, PooledWorker] = {}
        self._next = 0
        self._pause, self._start_from = 0.0, 0.0
        self._abandoned: list[str] = []
        self._lost_idle: list[str] = []
        self._stopped = False
        self._slots: dict[int, int] = {}  # slot: number of its worker
        self._next_slot = 0
        self.wanted = 0

    def want(self, count: int) -> None:
        """Set the number of workers."""
        with self._lock:
            self.wanted = count
            self._adjust()

    def poll(self) -> None:
        """Note who has answered, end workers that have left, start missing ones."""
        with self._lock:
            load = self._load()
            for worker in list(self._workers.values()):
                self._poll(worker, idle=not load[worker.number])
                if worker.phase is Phase.LEAVING and not load[worker.number]:
                    self._end(worker)
            self._adjust()

    def acquire(self, most: int) -> Slot | None:
        """A slot on the least loaded worker that holds fewer than `most`; None if there is no such worker."""
        with self._lock:
            load = self._load()
            able = [one for one in self.active() if load[one.number] < most]
            if not able:
                return None
            worker = min(able, key=lambda one: load[one.number])
            worker.given += 1
            self._next_slot += 1
            self._slots[self._next_slot] = worker.number
            return Slot(worker, self._next_slot)

    def release(self, slot: Slot) -> None:
        """Give a slot back. One that was given back before is ignored."""
        with self._lock:
            self._slots.pop(slot.id, None)

    def release_all(self) -> None:
        """Give every slot back: nobody waits for any work any more."""
        with self._lock:
            self._slots.clear()

    def failed(self, number: int, condemned: bool = False) -> bool:
        """Mark a worker as failed: it gets no work until it answers again. False if that was known.

        condemned: its process will be killed, and its further answers do not count.
        """
        with self._lock:
            worker = self._workers.get(number)
            if worker is None or worker.unhealthy:
                return False
            worker.silent = self._clock()
            if condemned:
                worker.killed = worker.up
            self._ask(worker)
            if worker.phase is Phase.LEAVING:
                worker.stays = Phase.UNHEALTHY
            else:
                worker.phase = Phase.UNHEALTHY
            return True

    def renewed(self, number: int, up: float, node: str, pid: int) -> bool:
        """Note the engine's start time (`up`) from a worker's report. True if it is later than the known one: the process was
        lost between two calls, and Ray had restarted it when it was called.
        """
        with self._lock:
            worker = self._workers.get(number)
            if worker is None or worker.unhealthy or up <= worker.up:
                return False
            worker.up, worker.node, worker.pid, worker.given = up, node, pid, 1
            worker.watch = worker.actor.watch.remote()
            return True

    def restart(self, number: int) -> None:
        """Kill a worker that makes no progress; Ray restarts it."""
        with self._lock:
            worker = self._workers.get(number)
            if worker is not None:
                self._kill(worker)
                self.failed(number)

    def awaited(self) -> list[Ref[dict[str, Any]]]:
        """References that become ready when a worker answers."""
        with self._lock:
            starting_or_unhealthy = (Phase.STARTING, Phase.UNHEALTHY)
            return [
                one.answer
                for one in self._workers.values()
                if one.answer is not None and one.phase in starting_or_unhealthy
            ]

    def ready(self) -> list[PooledWorker]:
        """Workers that can take work, by number."""
        with self._lock:
            return [one for one in self._workers.values() if one.phase is Phase.READY]

    def active(self) -> list[PooledWorker]:
        """The ready workers that get work, as many as are wanted, by number; the others, which joined last, are spares."""
        with self._lock:
            joined = sorted(self.ready(), key=lambda one: (one.up, one.number))
            return sorted(joined[: self.wanted], key=lambda one: one.number)

    def started(self) -> list[PooledWorker]:
        """Workers that have joined, whatever became of them since, by number."""
        with self._lock:
            return [one for one in self._workers.values() if one.phase is not Phase.STARTING]

    def count(self) -> Counter[Phase]:
        """Number of workers in each phase."""
        with self._lock:
            return Counter(one.phase for one in self._workers.values())

    def drain_abandoned(self) -> list[str]:
        """A sentence for each worker that Ray gave up, or that never answered, since the last call."""
        with self._lock:
            abandoned, self._abandoned = self._abandoned, []
            return abandoned

    def drain_lost_idle(self) -> list[str]:
        """A sentence for each worker that was lost while it held no work, since the last call."""
        with self._lock:
            lost, self._lost_idle = self._lost_idle, []
            return lost

    def stop(self) -> None:
        """End all workers."""
        with self._lock:
            self._stopped = True
            for worker in list(self._workers.values()):
                self._end(worker)

    def _load(self) -> Counter[int]:
        """Pieces of work by worker."""
        return Counter(self._slots.values())

    def _adjust(self) -> None:
        most = self.wanted + self.spares if self.wanted else 0
        staying = [one for one in self._workers.values() if one.phase is not Phase.LEAVING]
        for worker in [one for one in self._workers.values() if one.phase is Phase.LEAVING]:
            if len(staying) < most:
                worker.phase = worker.stays
                staying.append(worker)
        while len(staying) < most and self._clock() >= self._start_from and not self._stopped:
            staying.append(self._begin())
        while len(staying) > most:
            worker = first_to_leave(staying, self._home)
            staying.remove(worker)
            if self._load()[worker.number]:
                worker.phase, worker.stays = Phase.LEAVING, worker.phase
            else:
                self._end(worker)

    def _begin(self) -> PooledWorker:
        worker = PooledWorker(self._next, self._start(self._next), silent=self._clock())
        self._workers[worker.number] = worker
        self._next += 1
        self._ask(worker)
        return worker

    def _end(self, worker: PooledWorker) -> None:
        del self._workers[worker.number]
        ray.kill(worker.actor)

    def _kill(self, worker: PooledWorker) -> None:
        """End its process; Ray restarts it."""
        ray.kill(worker.actor, no_restart=False)
        worker.killed = worker.up

    def _ask(self, worker: PooledWorker) -> None:
        worker.answer = worker.actor.ready.remote()

    def _poll(self, worker: PooledWorker, idle: bool) -> None:
        if worker.phase is Phase.READY and idle:
            self._watch_idle(worker)
        if worker.phase not in (Phase.STARTING, Phase.UNHEALTHY):
            return
        if worker.answer is None:
            if self._clock() >= worker.ask_at:
                self._ask(worker)
            return
        if not ray.wait([worker.answer], timeout=0)[0]:
            self._end_silence(worker)
            return
        try:
            said = ray.get(worker.answer)
        except ActorDiedError as error:
            self._give_up(worker, error)
            return
        except RayError:
            said = None
        if said is None or said["up"] <= worker.killed:
            worker.answer, worker.ask_at = None, self._clock() + PROBE_SECONDS
            self._end_silence(worker)
        else:
            worker.phase, worker.answer, worker.given = Phase.READY, None, 0
            if said["up"] != worker.up:  # another process; each watch takes a thread of it
                worker.watch = worker.actor.watch.remote()
            worker.node, worker.up, worker.pid = said["node"], said["up"], said["pid"]
            self._pause = 0.0

    def _watch_idle(self, worker: PooledWorker) -> None:
        """Notice the loss of an idle worker; that of a busy one shows when its call fails."""
        if ray.wait([worker.watch], timeout=0)[0] and self.failed(worker.number):
            self._lost_idle.append(f"worker {worker.number} {LOST_IDLE}")

    def _end_silence(self, worker: PooledWorker) -> None:
        now = self._clock()
        if now < worker.look_at:
            return
        worker.look_at = now + LOOK_SECONDS
        if not _placed(worker.actor):
            worker.silent = now
        elif now - worker.silent >= START_SECONDS:
            worker.silent = now
            self._kill(worker)
            self._abandoned.append(f"worker {worker.number} did not answer for {START_SECONDS:.0f} s and was killed")
            logger.warning("rollout %s", self._abandoned[-1])

    def _give_up(self, worker: PooledWorker, error: ActorDiedError) -> None:
        del self._workers[worker.number]
        self._pause = min(max(2 * self._pause, 1.0), LONGEST_PAUSE)
        self._start_from = self._clock() + self._pause
        self._abandoned.append(f"worker {worker.number} cannot be started: {sentence(error)}")
        logger.warning("rollout %s; the next one is started in %.0f s", self._abandoned[-1], self._pause)


def _placed(actor: Any) -> bool:
    """Whether a node has room for this actor. Ray's public interface asks the dashboard, which may be off."""
    address = ray_state.actors(actor_id=actor._actor_id.hex()).get("Address", {})
    return bool(address.get("IPAddress"))  # `NodeID` is there before: the node that looks for room


def first_to_leave(workers: list[PooledWorker], home: str | None) -> PooledWorker:
    """The worker that leaves first; the youngest if all else is equal."""
    crowd = Counter(one.node for one in workers)
    return min(workers, key=lambda one: (one.phase is Phase.READY, one.node == home, crowd[one.node], -one.number))
