"""The fleet of rollout workers: who holds what, and what happens when one of them fails.

1. Work comes in chunks: a chunk of leases, or a slice of logged states. A worker has as many chunks in flight as fill
   its engine, one more waiting; the least loaded worker gets the next one.
2. What a chunk produced stays an object reference; the driver reads only its report. Results belong to the driver, so
   they outlive the worker.
3. A worker that dies, or whose engine fails, is started again by Ray; its chunks go back to the front of the queue, and
   it gets no work until it answers. A chunk past its deadline is given to somebody else, and the worker that held it is
   killed. Each costs every lease of the chunk one try.
4. A lease that failed by itself is tried again, up to `rollout.retries` times, then dropped and counted by cause.
   Where nothing at all succeeds the fleet raises instead of going on.

RLlib's FaultTolerantActorManager was tried for this; it fetches every result into the driver, which rule 2 forbids.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayError, RayTaskError

from mtrl_ray.config import Settings
from mtrl_ray.errors import EngineError
from mtrl_ray.rollout.lease import Lease
from mtrl_ray.rollout.worker import Report, RolloutWorker

logger = logging.getLogger(__name__)

START_SECONDS = 600.0
"""How long a worker may take until its engine runs."""
PROBE_SECONDS = 0.2
"""Between two questions to a worker that is being started again."""
MOST_RESTARTS = 20
"""Deaths in one call after which the fleet gives up and says why."""


@dataclass(frozen=True)
class Chunk:
    """A piece of work for one worker: leases, or the half-open range of a table of states."""

    leases: tuple[Lease, ...] = ()
    states: tuple[int, int] = (0, 0)
    tries: int = 0


@dataclass(frozen=True)
class Result:
    """A chunk that came back: `[ref of its table]` (in a list, so that Ray passes the reference) and its report."""

    table: list[Any]
    report: Report


@dataclass
class _Flight:
    chunk: Chunk
    worker: int
    table: Any
    deadline: float


@dataclass
class FleetStatistics:
    """Since the fleet began: deaths of workers, chunks past their deadline, failures by cause, leases dropped."""

    deaths: int = 0
    overdue: int = 0
    dropped: int = 0
    causes: Counter[str] = field(default_factory=Counter)


class Fleet:
    """Starts the workers and hands them work. Belongs to the driver; not thread-safe."""

    def __init__(self, settings: Settings, model_path: str, store: Any) -> None:
        self._settings = settings
        rollout = settings.rollout
        self._in_flight_per_worker = -(-rollout.concurrency // rollout.lease_size) + 1
        actor = ray.remote(RolloutWorker).options(
            num_cpus=rollout.cpus,
            num_gpus=rollout.gpus,
            max_restarts=-1,
            max_concurrency=self._in_flight_per_worker + 3,
        )
        self._store = store  # kept: it ends with its last handle
        name = ray.get(store.name.remote())
        self._workers = [actor.remote(number, settings, model_path, name) for number in range(rollout.workers)]
        self._recovering: dict[int, Any] = {}  # worker: its answer to `ready`, awaited
        self.statistics = FleetStatistics()

    def wait_ready(self) -> list[dict[str, Any]]:
        """Wait until every worker's engine runs; what each says of itself. Raises EngineError past `START_SECONDS`."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                answers = [worker.ready.remote() for worker in self._workers]
                return ray.get(answers, timeout=max(0.0, deadline - time.monotonic()))
            except ActorUnavailableError:  # being started again
                time.sleep(PROBE_SECONDS)
            except GetTimeoutError:
                wanted = (
                    f"{len(self._workers)} x {self._settings.rollout.cpus} CPUs, {self._settings.rollout.gpus} GPUs"
                )
                raise EngineError(
                    f"the rollout workers ({wanted}) were not ready after {START_SECONDS:.0f} s; the cluster has "
                    f"{ray.cluster_resources()}, of which free {ray.available_resources()}"
                ) from None
            except RayError as error:
                raise EngineError(f"a rollout worker could not start: {_root(error)}") from error

    def converse(self, leases: list[Lease], version: int) -> Iterator[Result]:
        """Hold these conversations under weights of at least `version`; results as they come, in any order."""
        size = self._chunk_size(len(leases), self._settings.rollout.lease_size)
        chunks = [Chunk(leases=tuple(leases[start : start + size])) for start in range(0, len(leases), size)]
        return self._dispatch(
            chunks,
            lambda worker, chunk: worker.converse.options(num_returns=2).remote(list(chunk.leases), version),
        )

    def respond(
        self, states: Any, count: int, samples: int, seed: int, version: int, mixture: float = 0.0
    ) -> Iterator[Result]:
        """Sample `samples` responses in each of `count` logged states (a ref of their table)."""
        size = self._chunk_size(count, max(1, self._settings.rollout.lease_size // samples))
        chunks = [Chunk(states=(start, min(count, start + size))) for start in range(0, count, size)]
        return self._dispatch(
            chunks,
            lambda worker, chunk: worker.respond.options(num_returns=2).remote(
                states, *chunk.states, samples, seed, version, mixture
            ),
        )

    def worker_statistics(self) -> list[dict[str, float]]:
        """The dialogue loops' counters, one entry per worker."""
        return ray.get([worker.statistics.remote() for worker in self._workers])

    def stop(self) -> None:
        """End the workers."""
        for worker in self._workers:
            ray.kill(worker)

    def _chunk_size(self, items: int, most: int) -> int:
        """At most `most`, and small enough that every worker gets a share."""
        return max(1, min(most, -(-items // len(self._workers))))

    def _dispatch(self, chunks: list[Chunk], call: Callable[[Any, Chunk], list[Any]]) -> Iterator[Result]:
        waiting, flights = deque(chunks), dict[Any, _Flight]()
        finished, deaths_before = 0, self.statistics.deaths
        while waiting or flights:
            self._revive()
            self._send(waiting, flights, call)
            ready = _first_ready([*flights, *self._recovering.values()], flights)
            for reference in ready:
                flight = flights.pop(reference)
                result = self._collect(reference, flight, waiting)
                if result is not None:
                    finished += result.report.finished
                    yield result
            self._expire(waiting, flights)
            if self.statistics.deaths - deaths_before > MOST_RESTARTS:
                raise EngineError(f"rollout workers died {MOST_RESTARTS} times in one call; causes: {self._causes()}")
        if chunks and not finished:
            raise EngineError(f"none of the {len(chunks)} chunks of work succeeded; causes: {self._causes()}")

    def _send(
        self, waiting: deque[Chunk], flights: dict[Any, _Flight], call: Callable[[Any, Chunk], list[Any]]
    ) -> None:
        load = Counter(flight.worker for flight in flights.values())
        alive = [number for number in range(len(self._workers)) if number not in self._recovering]
        while waiting and alive:
            number = min(alive, key=lambda worker: load[worker])
            if load[number] >= self._in_flight_per_worker:
                return
            chunk = waiting.popleft()
            table, report = call(self._workers[number], chunk)
            deadline = time.monotonic() + self._settings.rollout.lease_seconds * (1 + load[number])
            flights[report] = _Flight(chunk, number, table, deadline)
            load[number] += 1

    def _collect(self, reference: Any, flight: _Flight, waiting: deque[Chunk]) -> Result | None:
        try:
            report: Report = ray.get(reference)
        except RayError as error:
            origin = _cause(error)
            if flight.worker not in self._recovering:
                self.statistics.deaths += isinstance(origin, RayError | EngineError)
                self._recovering[flight.worker] = self._workers[flight.worker].ready.remote()
            self._again(flight.chunk, f"{type(origin).__name__}: {_root(origin)}", waiting)
            return None
        leases = {lease.id: lease for lease in flight.chunk.leases}
        for failure in report.failures:
            cause = f"{failure.kind}: {failure.message}"
            self._again(Chunk((leases[failure.id],), tries=flight.chunk.tries), cause, waiting)
        return Result([flight.table], report)

    def _again(self, chunk: Chunk, cause: str, waiting: deque[Chunk]) -> None:
        self.statistics.causes[cause[:300]] += 1
        if chunk.tries < self._settings.rollout.retries:
            waiting.appendleft(Chunk(chunk.leases, chunk.states, chunk.tries + 1))
            return
        dropped = max(len(chunk.leases), 1)
        self.statistics.dropped += dropped
        logger.warning("%d piece(s) of work dropped after %d tries: %s", dropped, chunk.tries + 1, cause)

    def _expire(self, waiting: deque[Chunk], flights: dict[Any, _Flight]) -> None:
        now = time.monotonic()
        for reference in [reference for reference, flight in flights.items() if flight.deadline < now]:
            flight = flights.pop(reference)
            self.statistics.overdue += 1
            seconds = self._settings.rollout.lease_seconds
            self._again(flight.chunk, f"worker {flight.worker} kept a lease longer than {seconds:.0f} s", waiting)
            ray.kill(self._workers[flight.worker], no_restart=False)
            self._recovering[flight.worker] = self._workers[flight.worker].ready.remote()

    def _revive(self) -> None:
        """Give work again to workers that answer; ask the others again."""
        for number, probe in list(self._recovering.items()):
            if not ray.wait([probe], timeout=0)[0]:
                continue
            try:
                ray.get(probe)
                del self._recovering[number]
            except ActorDiedError as error:
                raise EngineError(f"rollout worker {number} cannot be started again: {_root(error)}") from error
            except RayError:
                time.sleep(PROBE_SECONDS)
                self._recovering[number] = self._workers[number].ready.remote()

    def _causes(self) -> str:
        listed = [f"{count} x {cause}" for cause, count in self.statistics.causes.most_common(3)]
        return "; ".join(listed) or "none recorded"


def _first_ready(awaited: list[Any], flights: dict[Any, _Flight]) -> list[Any]:
    """Wait a moment for anything; the finished references that are flights."""
    ready, _ = ray.wait(awaited, num_returns=1, timeout=1.0)
    return [reference for reference in ready if reference in flights]


def _cause(error: BaseException) -> BaseException:
    """What a worker raised, or Ray's own error where the worker died."""
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return error


def _root(error: BaseException) -> str:
    """The last line of an error: the sentence of what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
