"""The number of workers of a run whose `rollout.workers` is a range: what demand says, or what somebody asks for by hand.

1. After every iteration `follow` gives what it showed to the policy (`mtrl_cluster.demand`), and the fleet gets the policy's
   number, unless one was asked for by hand (`mtrl scale RUN N`), which holds until it is given back (`mtrl scale RUN auto`).
2. A thread hears requests (`rollout.requests`) and attends to the fleet, whatever the driver waits for. If it fails,
   the next `follow` raises, and `mend` starts another.
3. Both change the same number and write the same file, each under one lock.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from mtrl_cluster.demand import Demand, LeastSeconds, Load, waited
from mtrl_ray.errors import EngineError
from mtrl_ray.rollout.fleet import Fleet, Use
from mtrl_ray.rollout.members import Phase
from mtrl_ray.rollout.requests import FleetState, clear, read_request, write_state
from mtrl_ray.settings.tree import WorkerRange

logger = logging.getLogger(__name__)

ATTEND_SECONDS = 0.5
"""Between two looks at requests and at the fleet."""
STOP_SECONDS = 2.0
"""For the thread to end; one that hangs ends with the process."""
NOT_THE_LEARNERS = ("iteration", "collect", "respond", "judge")
"""Families whose seconds are not spent by the learner."""


class Scaling:
    """Belongs to the driver of a run; `stop` ends its thread."""

    def __init__(
        self, folder: Path, fleet: Callable[[], Fleet], workers: WorkerRange, bound: int | None = None
    ) -> None:
        """`fleet`: gives the present one, for a run that lost it makes another. `bound`: of the staleness of conversations,
        in weight versions (`replay.max_staleness`).
        """
        self._folder, self._fleet, self._bounds, self._bound = folder, fleet, (workers.min, workers.max), bound
        self._demand = Demand(*self._bounds, LeastSeconds(workers.having_seconds, workers.keeping_seconds))
        self._wanted = workers.min
        self._by_hand = False
        self._heard: str | None = None
        self._said: FleetState | None = None
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        clear(folder)
        self._say()
        self._thread = self._started()

    def mend(self) -> None:
        """Attend again, where the thread has failed."""
        if self._error is not None:
            self._error = None
            self._thread = self._started()

    def begin(self) -> None:
        """An iteration begins: what was asked of the fleet before is none of it."""
        self._fleet().take_use()

    def follow(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """An iteration has ended with these metrics: want as many workers as it shows to be of use; numbers about them."""
        if self._error is not None:
            raise EngineError(f"the thread that attends to the rollout workers failed: {self._error}") from self._error
        fleet = self._fleet()
        use = fleet.take_use()
        load = load_of(metrics, use, len(fleet.members.active()), self._bound)
        with self._lock:
            if not self._by_hand:
                self._wanted = self._demand.wanted(load, self._wanted)
                fleet.members.want(self._wanted)
            self._say()
            wanted = self._wanted
        count = fleet.members.count()
        numbers = {f"workers/{phase}": float(count[phase]) for phase in (Phase.READY, Phase.LEAVING)}
        numbers |= {"workers/wanted": float(wanted), "workers/waited_seconds": load.waited_seconds}
        return numbers | ({"workers/joining_seconds": max(use.joining)} if use.joining else {})

    def stop(self) -> None:
        """End the thread, and with it the answers to requests."""
        self._stopped.set()
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            logger.warning("the thread that attends to the rollout workers did not end within %.0f s", STOP_SECONDS)
        clear(self._folder)

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._attend, name="fleet", daemon=True)
        thread.start()
        return thread

    def _attend(self) -> None:
        try:
            while not self._stopped.wait(ATTEND_SECONDS):
                with self._lock:
                    self._hear()
                    members = self._fleet().members
                    if members.wanted != self._wanted:
                        members.want(self._wanted)
                    members.attend()
                    self._say()
        except Exception as error:
            logger.exception("nobody attends to the rollout workers any more")
            self._error = error

    def _hear(self) -> None:
        request = read_request(self._folder)
        if request is None or request.id == self._heard:
            return
        least, most = self._bounds
        self._heard, self._by_hand = request.id, request.workers is not None
        if request.workers is not None:
            self._wanted = min(max(request.workers, least), most)
        logger.info("rollout workers: %s", request.workers or "as demand says")

    def _say(self) -> None:
        count = self._fleet().members.count()
        state = FleetState(
            *self._bounds,
            self._wanted,
            ready=count[Phase.READY],
            starting=count[Phase.STARTING],
            ill=count[Phase.ILL],
            leaving=count[Phase.LEAVING],
            by="hand" if self._by_hand else "demand",
            heard=self._heard,
        )
        if state == self._said:
            return
        try:
            write_state(self._folder, state)
            self._said = state
        except OSError as error:
            logger.warning("how the fleet is cannot be written into %s: %s", self._folder, error.strerror)


def load_of(metrics: Mapping[str, float], use: Use, workers: int, bound: int | None) -> Load:
    """What an iteration showed, out of its metrics and of what was asked of the fleet.

    Staleness is that of conversations when the learner gets them. How old the buffer's oldest is (`replay/staleness_max`)
    says nothing of the workers: what stays in it ages with every version up to the bound, however few collect.
    """
    seconds = metrics["iteration/seconds"]
    rollouts = min(use.seconds, seconds)
    families = {key.removesuffix("/seconds"): value for key, value in metrics.items() if key.endswith("/seconds")}
    learner = sum(value for family, value in families.items() if family not in NOT_THE_LEARNERS)
    staleness = int(metrics.get("collect/staleness", 0))
    return Load(workers, seconds, rollouts, waited(seconds, rollouts, learner), use.chunks, staleness, bound)
