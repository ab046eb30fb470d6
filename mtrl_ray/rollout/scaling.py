"""The number of workers of a run whose `rollout.workers` is a range: set by demand, or by hand.

After every iteration `follow` passes its load to the policy (`mtrl_cluster.demand`), and the fleet gets the policy's number. A
number that was set by hand (`mtrl scale RUN N`) holds until `mtrl scale RUN auto`.

A thread reads requests (`rollout.requests`) and polls the fleet, whatever the driver waits for. If it fails, the next `follow`
raises, and `repair` starts another. Driver and thread change the same number and write the same file, each under one lock.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from mtrl_cluster.demand import Demand, Load, waited
from mtrl_ray.errors import EngineError
from mtrl_ray.rollout.fleet import Fleet
from mtrl_ray.rollout.requests import FleetState, clear, read_request, write_state
from mtrl_ray.rollout.results import Usage
from mtrl_ray.rollout.worker_pool import Phase
from mtrl_ray.settings.tree import WorkerRange

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Between two polls of requests and fleet."""
STOP_SECONDS = 2.0
"""For the thread to end; one that hangs ends with the process."""
NOT_THE_LEARNERS = ("iteration", "collect", "respond", "judge")
"""Families whose seconds are not spent by the learner."""


class Scaling:
    """Belongs to the driver of a run; `stop` ends its thread."""

    def __init__(self, folder: Path, fleet: Callable[[], Fleet], workers: WorkerRange) -> None:
        """`fleet`: returns the present one; a run that loses its fleet makes another."""
        self._folder, self._fleet, self._bounds = folder, fleet, (workers.min, workers.max)
        self._demand = Demand(*self._bounds, workers.least_seconds)
        self._wanted = workers.min
        self._by_hand = False
        self._last_request: str | None = None
        self._said: FleetState | None = None
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        clear(folder)
        self._say()
        self._thread = self._started()

    def repair(self) -> None:
        """Start the thread again if it has failed."""
        if self._error is not None:
            self._error = None
            self._thread = self._started()

    def begin(self) -> None:
        """Start an iteration: earlier use of the fleet does not count towards it."""
        self._fleet().drain_usage()

    def follow(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """End an iteration with these metrics: set the number of workers that its load justifies; returns metrics."""
        if self._error is not None:
            raise EngineError(f"the thread that manages the rollout workers failed: {self._error}") from self._error
        fleet = self._fleet()
        usage = fleet.drain_usage()
        load = load_of(metrics, usage, len(fleet.pool.active()))
        with self._lock:
            if not self._by_hand:
                self._wanted = self._demand.wanted(load, self._wanted)
                fleet.pool.want(self._wanted)
            self._say()
            wanted = self._wanted
        count = fleet.pool.count()
        numbers = {f"workers/{phase}": float(count[phase]) for phase in (Phase.READY, Phase.LEAVING)}
        numbers |= {"workers/wanted": float(wanted), "workers/waited_seconds": load.waited_seconds}
        return numbers | ({"workers/joining_seconds": max(usage.joining)} if usage.joining else {})

    def stop(self) -> None:
        """End the thread, and with it the answers to requests."""
        self._stopped.set()
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            logger.warning("the thread that manages the rollout workers did not end within %.0f s", STOP_SECONDS)
        clear(self._folder)

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._serve, name="fleet", daemon=True)
        thread.start()
        return thread

    def _serve(self) -> None:
        try:
            while not self._stopped.wait(POLL_SECONDS):
                with self._lock:
                    self._read_request()
                    pool = self._fleet().pool
                    if pool.wanted != self._wanted:
                        pool.want(self._wanted)
                    pool.poll()
                    self._say()
        except Exception as error:
            logger.exception("the rollout workers are no longer managed")
            self._error = error

    def _read_request(self) -> None:
        request = read_request(self._folder)
        if request is None or request.id == self._last_request:
            return
        least, most = self._bounds
        self._last_request, self._by_hand = request.id, request.workers is not None
        if request.workers is not None:
            self._wanted = min(max(request.workers, least), most)
        logger.info("rollout workers: %s", request.workers or "as demand says")

    def _say(self) -> None:
        count = self._fleet().pool.count()
        state = FleetState(
            *self._bounds,
            self._wanted,
            ready=count[Phase.READY],
            starting=count[Phase.STARTING],
            unhealthy=count[Phase.UNHEALTHY],
            leaving=count[Phase.LEAVING],
            by="hand" if self._by_hand else "demand",
            last_request=self._last_request,
        )
        if state == self._said:
            return
        try:
            write_state(self._folder, state)
            self._said = state
        except OSError as error:
            logger.warning("how the fleet is cannot be written into %s: %s", self._folder, error.strerror)


def load_of(metrics: Mapping[str, float], usage: Usage, workers: int) -> Load:
    """The load of an iteration, from its metrics and the fleet's usage."""
    seconds = metrics["iteration/seconds"]
    rollouts = min(usage.seconds, seconds)
    families = {key.removesuffix("/seconds"): value for key, value in metrics.items() if key.endswith("/seconds")}
    learner = sum(value for family, value in families.items() if family not in NOT_THE_LEARNERS)
    return Load(workers, seconds, rollouts, waited(seconds, rollouts, learner), usage.chunks)
