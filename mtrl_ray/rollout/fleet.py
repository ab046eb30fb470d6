"""The fleet of rollout workers: which worker has which work, and what happens if one fails.

Work comes in chunks of leases, or of logged states (`rollout.chunks`). A worker has as many chunks in flight as fill its
engine and one more that waits, or one in all if runs are exact. The least loaded worker gets the next one. The workers may
change at any time (`rollout.worker_pool`): one that joins takes waiting work, one that leaves finishes what it has. What a
chunk produced stays an object reference, and the driver reads only its report. Results belong to the driver, so they outlive
the worker.

If something fails:

- What a worker leaves unfinished when it dies, or when its engine fails, goes back to the front of the queue, and the worker
  gets no work until it answers again. A worker that makes no progress (`rollout.heartbeats`) returns what is finished if it
  still can, and is killed. Each time, every unfinished lease of the chunk has used up one try. No conversation is dropped for
  that: past `rollout.retries` the fleet raises. Exact chunks are all or nothing.
- A lease that failed by itself is tried again, up to `rollout.retries` times, then dropped and counted by cause. One whose
  scripted user never answered is dropped at once. If nothing at all succeeds, the fleet raises.
- Failures of the infrastructure are reported at the end of the call, each cause once with its count so far.
- If no worker has work and none takes any, a note says what is missing; later it is an error (`rollout.patience`).

RLlib's FaultTolerantActorManager was tried for this; it fetches every result into the driver.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from mtrl_ray.errors import DataError, EngineError
from mtrl_ray.models.positions import check_context_length
from mtrl_ray.processes.deadlines import Late
from mtrl_ray.processes.failures import Failure, root_cause, sentence
from mtrl_ray.processes.refs import Ref
from mtrl_ray.processes.waiting import fetch
from mtrl_ray.rollout.choice import worker_options
from mtrl_ray.rollout.chunks import Chunk, Cutter
from mtrl_ray.rollout.heartbeats import Heartbeats
from mtrl_ray.rollout.lease import Lease
from mtrl_ray.rollout.patience import Patience
from mtrl_ray.rollout.results import FleetStatistics, Result, Usage
from mtrl_ray.rollout.worker import Report, RolloutWorker
from mtrl_ray.rollout.worker_pool import LOST_IDLE, PROBE_SECONDS, START_SECONDS, Phase, Slot, WorkerPool
from mtrl_ray.settings.tree import Settings

logger = logging.getLogger(__name__)

ABANDON_SECONDS = 30.0
"""Longest time for a worker to drop its work: a step of its engine."""
GIVE_UP_SECONDS = 2.0
"""How long a stalled worker may take to return what is finished, before it is killed."""
MOST_RESTARTS = 20
"""Deaths of workers in one call after which the fleet gives up."""


Call = Callable[[Any, Chunk], tuple[Ref[pa.Table], Ref[Report]]]
"""Gives a worker's actor a chunk: refs of the table and of the report."""


@dataclass
class _Flight:
    chunk: Chunk
    slot: Slot
    table: Ref[pa.Table]

    @property
    def worker(self) -> int:
        """The worker's number."""
        return self.slot.worker.number


class Fleet:
    """Starts the workers and dispatches work to them. Belongs to the driver; not thread-safe."""

    def __init__(
        self,
        settings: Settings,
        model_path: str,
        store: Any,
        say: Callable[[str], object] = logger.warning,
        statistics: FleetStatistics | None = None,
    ) -> None:
        """`say` gets what whoever watches the run should know. `statistics`: those of a lost fleet, which are continued.

        Raises ConfigurationError if the model has fewer positions than `model.context_length`.
        """
        check_context_length(settings.model, model_path)
        self._settings = settings
        rollout = settings.rollout
        self._cutter = Cutter(settings)
        actor = ray.remote(RolloutWorker).options(
            num_cpus=rollout.cpus,
            num_gpus=rollout.gpus,
            max_restarts=-1,
            max_concurrency=self._cutter.in_flight + 4,
            **worker_options(rollout),
        )
        self._store = store  # kept: it ends with its last handle
        name = fetch(store.name.remote(), "the weight store's name")
        self._least, _ = rollout.bounds
        self.pool = WorkerPool(
            lambda number: actor.remote(number, settings, model_path, name),
            home=ray.get_runtime_context().get_node_id(),
            spares=rollout.spares,
        )
        self.pool.want(self._least)
        self._say, self._faults = say, dict[str, bool]()  # causes of what failed though not by itself: said already
        self._patience = Patience(self.pool, rollout, say)
        self._usage = Usage()
        self._failed: Failure | None = None  # in the present call, by itself
        self._stalled: dict[int, float] = {}  # in the present call: workers without progress, and when that was noticed
        self.statistics = statistics or FleetStatistics()

    def wait_ready(self) -> list[dict[str, Any]]:
        """Wait until as many workers as are needed run their engines, and none is unhealthy; what each says of itself.

        Raises EngineError if one cannot start, or past `START_SECONDS`.
        """
        self._patience.update(stalled=False)
        while True:
            self._patience.update(stalled=True)
            self.pool.poll()
            for lost in self.pool.drain_abandoned():
                raise EngineError(f"rollout {lost}")
            count = self.pool.count()
            if count[Phase.READY] >= self._least and not count[Phase.UNHEALTHY]:
                answers = self._describe()
                if answers is not None:
                    return answers
            awaited = self.pool.awaited()
            if awaited:
                ray.wait(awaited, timeout=PROBE_SECONDS)
            else:
                time.sleep(PROBE_SECONDS)

    def rollout(self, leases: list[Lease], version: int, known: Set[str] = frozenset()) -> Iterator[Result]:
        """Roll out these conversations under weights of at least `version`; results as they come, in any order.

        known: ids of conversations that exist already; an exact run's chunk may contain them all the same.
        """
        exact = self._cutter.exact
        return self._dispatch(
            self._cutter.leases(leases, known, self.pool.wanted),
            lambda worker, chunk: worker.rollout.options(num_returns=2).remote(list(chunk.leases), version, exact),
        )

    def respond(
        self, states: Ref[pa.Table], count: int, samples: int, seed: int, version: int, mixture: float = 0.0
    ) -> Iterator[Result]:
        """Sample `samples` responses in each of `count` logged states (a ref of their table)."""
        exact = self._cutter.exact
        return self._dispatch(
            self._cutter.states(count, samples, self.pool.wanted),
            lambda worker, chunk: worker.respond.options(num_returns=2).remote(
                states, *chunk.states, samples, seed, version, mixture, exact
            ),
        )

    def abandon(self) -> None:
        """Make the workers drop their work; one that does not answer in time is restarted.

        For a driver that begins anew: nobody waits for their results any more.
        """
        asked = {worker.actor.abandon.remote(): worker.number for worker in self.pool.started()}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ABANDON_SECONDS) if asked else ([], [])
        for answer, number in asked.items():
            if answer not in answered:
                self.pool.restart(number)
                continue
            try:
                ray.get(answer)
            except RayError:
                self.pool.failed(number)

    def drain_usage(self) -> Usage:
        """Use of the fleet since the last call."""
        usage, self._usage = self._usage, Usage()
        return usage

    def stop(self) -> None:
        """End the workers."""
        self.pool.stop()

    def _describe(self) -> list[dict[str, Any]] | None:
        """What each worker says of itself; None if one does not answer, which is then marked unhealthy."""
        answers = {worker.number: worker.actor.ready.remote() for worker in self.pool.ready()}
        said = []
        for number, answer in answers.items():
            try:
                said.append(ray.get(answer, timeout=START_SECONDS))
            except RayError:
                self.pool.failed(number)
        return said if len(said) == len(answers) else None

    def _dispatch(self, chunks: list[Chunk], call: Call) -> Iterator[Result]:
        waiting, flights = deque(chunks), dict[Ref[Report], _Flight]()
        self.pool.release_all()
        finished, deaths_before, begun = 0, self.statistics.deaths, time.time()
        self._failed, self._stalled = None, {}
        heartbeats = Heartbeats(self._settings.rollout.lease_seconds)
        self._usage.chunks = max(self._usage.chunks, len(chunks))
        self._patience.update(stalled=False)
        try:
            while waiting or flights or self._stalled:
                self._update_pool()
                self._send(waiting, flights, call, begun)
                self._patience.update(stalled=not flights)
                ready = _first_ready([*flights, *self.pool.awaited()], flights)
                for reference in ready:
                    flight = flights.pop(reference)
                    self.pool.release(flight.slot)
                    result = self._collect(reference, flight, waiting)
                    if result is not None:
                        finished += result.report.finished
                        yield result
                self._replace_stalled(waiting, flights, heartbeats)
                if self.statistics.deaths - deaths_before > MOST_RESTARTS:
                    raise EngineError(
                        f"rollout workers died {MOST_RESTARTS} times in one call; causes: {self._causes()}"
                    )
        finally:
            self._usage.seconds += time.time() - begun
            for flight in flights.values():
                self.pool.release(flight.slot)
            for number in self._stalled:
                self.pool.restart(number)
            self._say_causes()
        if chunks and not finished:
            raise self._nothing(len(chunks))

    def _nothing(self, chunks: int) -> Exception:
        """Why nothing at all succeeded: the data if conversations failed by themselves, else the infrastructure."""
        said = f"none of the {chunks} chunks of work succeeded; causes: {self._causes()}"
        if self._failed is None or self._failed.kind == EngineError.__name__:
            return EngineError(said)
        return DataError(f"{said}; the last conversation that failed is {self._failed.id}")

    def _update_pool(self) -> None:
        """Let workers join, recover and leave; count the losses."""
        self.pool.poll()
        for lost in (*self.pool.drain_abandoned(), *self.pool.drain_lost_idle()):
            self.statistics.deaths += 1
            self._fault(lost)

    def _send(
        self,
        waiting: deque[Chunk],
        flights: dict[Ref[Report], _Flight],
        call: Call,
        begun: float,
    ) -> None:
        while waiting:
            slot = self.pool.acquire(self._cutter.in_flight)
            if slot is None:
                return
            worker = slot.worker
            if worker.given == 1:
                seconds = time.time() - max(worker.up, begun)
                self.statistics.joining.append(seconds)
                self._usage.joining.append(seconds)
            chunk = waiting.popleft()
            table, report = call(worker.actor, chunk)
            flights[report] = _Flight(chunk, slot, table)

    def _collect(self, reference: Ref[Report], flight: _Flight, waiting: deque[Chunk]) -> Result | None:
        try:
            report: Report = ray.get(reference)
        except RayError as error:
            origin = root_cause(error)
            if isinstance(error, RayTaskError) and isinstance(origin, RayError):
                raise EngineError(f"what the rollout workers need is lost: {sentence(origin)}") from error
            self._worker_failed(flight.worker, isinstance(origin, RayError | EngineError))
            self._hold_again(flight.chunk, f"{type(origin).__name__}: {sentence(origin)}", waiting)
            return None
        if self.pool.renewed(flight.worker, report.up, report.node, report.pid):
            self.statistics.deaths += 1
            self._fault(f"worker {flight.worker} {LOST_IDLE}")
        leases = {lease.id: lease for lease in flight.chunk.leases}
        for failure in report.failures:
            self._failed = failure
            cause = f"{failure.kind}: {failure.message}"
            self.statistics.causes[cause[:300]] += 1
            tries = self._settings.rollout.retries if failure.kind == Late.__name__ else flight.chunk.tries
            self._again(Chunk((leases[failure.id],), tries=tries), cause, waiting)
        if report.error is not None:
            self._worker_failed(flight.worker, died=True)
            if report.unfinished:
                left = tuple(lease for lease in flight.chunk.leases if lease.id in report.unfinished)
                self._hold_again(replace(flight.chunk, leases=left), f"EngineError: {report.error}", waiting)
        return Result([flight.table], report)

    def _worker_failed(self, number: int, died: bool) -> None:
        """It gets no work until it answers again."""
        if self.pool.failed(number):
            self.statistics.deaths += died

    def _hold_again(self, chunk: Chunk, cause: str, waiting: deque[Chunk]) -> None:
        """Put back a chunk that failed although nothing is wrong with it. Raises EngineError past `rollout.retries`."""
        self._fault(cause)
        if chunk.tries >= self._settings.rollout.retries:
            raise EngineError(f"a chunk of work failed {chunk.tries + 1} times, though not by itself: {cause}")
        self._again(chunk, cause, waiting)

    def _again(self, chunk: Chunk, cause: str, waiting: deque[Chunk]) -> None:
        if chunk.tries < self._settings.rollout.retries:
            waiting.appendleft(replace(chunk, tries=chunk.tries + 1))
            return
        dropped = max(len(chunk.leases), 1)
        self.statistics.dropped += dropped
        logger.warning("%d piece(s) of work dropped after %d tries: %s", dropped, chunk.tries + 1, cause)

    def _replace_stalled(
        self, waiting: deque[Chunk], flights: dict[Ref[Report], _Flight], heartbeats: Heartbeats
    ) -> None:
        """Have stalled workers return what is finished, and kill them when they have, or cannot."""
        now = time.monotonic()
        seconds = self._settings.rollout.lease_seconds
        for worker in heartbeats.stalled(flight.slot.worker for flight in flights.values()):
            if self.pool.failed(worker.number, condemned=True):
                self.statistics.overdue += 1
                self._stalled[worker.number] = now
                worker.actor.give_up.remote(_stalled(worker.number, seconds))
        for number, since in list(self._stalled.items()):
            left = [reference for reference, flight in flights.items() if flight.worker == number]
            if left and now - since < GIVE_UP_SECONDS:
                continue
            del self._stalled[number]
            self.pool.restart(number)
            for flight in [flights.pop(reference) for reference in left]:
                self.pool.release(flight.slot)
                self._hold_again(flight.chunk, _stalled(number, seconds), waiting)

    def _fault(self, cause: str) -> None:
        self.statistics.causes[cause[:300]] += 1
        self._faults.setdefault(cause[:300], False)

    def _say_causes(self) -> None:
        for cause, said in self._faults.items():
            if not said:
                self._faults[cause] = True
                self._say(f"rollout workers: {self.statistics.causes[cause]} x {cause}")

    def _causes(self) -> str:
        listed = [f"{count} x {cause}" for cause, count in self.statistics.causes.most_common(3)]
        return "; ".join(listed) or "none recorded"


def _stalled(number: int, seconds: float) -> str:
    return f"worker {number} made no progress for {seconds:g} s"


def _first_ready(awaited: Sequence[Ref[Any]], flights: dict[Ref[Report], _Flight]) -> list[Ref[Report]]:
    """Wait a moment for anything; the finished references that are flights."""
    if not awaited:  # every worker was given up, and the next one is not to be started yet
        time.sleep(PROBE_SECONDS)
        return []
    ready, _ = ray.wait(awaited, num_returns=1, timeout=1.0)
    return [reference for reference in ready if reference in flights]
