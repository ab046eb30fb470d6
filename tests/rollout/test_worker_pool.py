"""Who is in the fleet, with real actors that stand in for workers: joining, failing, leaving, being given up."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from mtrl_ray.rollout.worker_pool import LOOK_SECONDS, START_SECONDS, Phase, PooledWorker, WorkerPool, first_to_leave


@ray.remote(num_cpus=0, max_restarts=-1, max_concurrency=2)
class Standin:
    """Answers `ready` as a worker does; where its file exists it cannot start, or never does where that says so."""

    def __init__(self, broken: str) -> None:
        if Path(broken).exists():
            time.sleep(3600 if Path(broken).read_text() == "for ever" else 0)
            raise RuntimeError("no engine here")
        self._up = time.time()

    def ready(self) -> dict[str, object]:
        return {"node": "here", "up": self._up, "pid": os.getpid()}

    def watch(self) -> None:
        threading.Event().wait()


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    return tmp_path / "broken"


@pytest.fixture
def pool(ray_cluster: None, broken: Path):
    made = WorkerPool(lambda number: Standin.remote(str(broken)), home="here")
    yield made
    made.stop()


def until(pool: WorkerPool, holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, pool.count()
        pool.poll()
        time.sleep(0.02)


def test_they_join_and_the_least_loaded_takes_work(pool: WorkerPool):
    pool.want(2)
    assert pool.count() == {Phase.STARTING: 2} and pool.acquire(9) is None
    until(pool, lambda: pool.count()[Phase.READY] == 2)
    taken = [pool.acquire(2) for _ in range(5)]
    assert [one and one.worker.number for one in taken] == [0, 1, 0, 1, None]
    pool.release(taken[1])
    pool.release(taken[1])
    assert pool.acquire(2).worker.number == 1 and pool.acquire(2) is None, "a slot is given back once"
    pool.release_all()
    assert pool.acquire(1).worker.number == 0 and pool.acquire(1).worker.number == 1
    pool.release(taken[0])
    assert pool.acquire(1) is None, "a slot of before is none of now"


def test_one_that_leaves_gets_no_work_and_ends_when_it_holds_none(pool: WorkerPool):
    pool.want(2)
    until(pool, lambda: pool.count()[Phase.READY] == 2)
    held = [pool.acquire(5) for _ in range(4)]
    pool.want(1)
    pool.poll()
    assert pool.count() == {Phase.READY: 1, Phase.LEAVING: 1}
    assert {pool.acquire(9).worker.number for _ in range(3)} == {0}
    assert ray.get(held[1].worker.actor.ready.remote())["pid"], "it still works"
    pool.release(held[1])
    pool.release(held[3])
    pool.poll()
    assert pool.count() == {Phase.READY: 1}

    def ended() -> bool:
        try:
            ray.get(held[1].worker.actor.ready.remote())
        except ray.exceptions.RayActorError:
            return True
        return False

    until(pool, ended)


def test_one_that_leaves_is_called_back_where_it_is_wanted_again(pool: WorkerPool):
    pool.want(2)
    until(pool, lambda: pool.count()[Phase.READY] == 2)
    pool.acquire(1), pool.acquire(1)
    pool.want(1)
    pool.want(2)
    assert pool.count() == {Phase.READY: 2} and [one.number for one in pool.ready()] == [0, 1]


def test_one_that_leaves_finishes_what_it_holds_though_one_of_its_calls_failed(pool: WorkerPool):
    pool.want(2)
    until(pool, lambda: pool.count()[Phase.READY] == 2)
    slots = [pool.acquire(5) for _ in range(4)]
    held = slots[1].worker
    assert held.number == 1
    pool.release(slots[1])
    assert pool.failed(1)
    pool.want(1)
    pool.poll()
    assert pool.count() == {Phase.READY: 1, Phase.LEAVING: 1} and not pool.failed(1)
    pool.want(2)
    assert pool.count() == {Phase.READY: 1, Phase.UNHEALTHY: 1}, "it comes back as what it was"
    until(pool, lambda: pool.count()[Phase.READY] == 2)
    pool.want(1)
    assert pool.failed(1), "as it leaves"
    pool.poll()
    assert pool.count() == {Phase.READY: 1, Phase.LEAVING: 1} and not pool.awaited()
    assert ray.get(held.actor.ready.remote())["pid"], "it still works"
    pool.release(slots[3])
    pool.poll()
    assert pool.count() == {Phase.READY: 1}


def test_one_that_fails_gets_no_work_until_it_answers_again(pool: WorkerPool):
    pool.want(1)
    until(pool, lambda: pool.count()[Phase.READY] == 1)
    before = ray.get(pool.ready()[0].actor.ready.remote())["pid"]
    pool.restart(0)
    assert pool.count() == {Phase.UNHEALTHY: 1} and pool.acquire(9) is None and not pool.failed(0)
    until(pool, lambda: pool.count()[Phase.READY] == 1)
    again = pool.acquire(9).worker
    assert again.number == 0 and ray.get(again.actor.ready.remote())["pid"] != before


def test_one_that_ray_gives_up_is_replaced_after_a_pause(pool: WorkerPool, broken: Path):
    broken.touch()
    pool.want(1)
    until(pool, lambda: not pool.count())
    lost = pool.drain_abandoned()
    assert len(lost) == 1 and "worker 0 cannot be started" in lost[0] and "no engine here" in lost[0]
    pool.poll()
    assert not pool.count() and not pool.drain_abandoned(), "not at once"
    broken.unlink()
    until(pool, lambda: pool.count()[Phase.READY] == 1)
    assert pool.acquire(1).worker.number == 1


def lose(worker: PooledWorker) -> dict[str, object]:
    """Kill its process; what the next one says when Ray has started it."""
    os.kill(worker.pid, signal.SIGKILL)
    while True:
        try:
            said = ray.get(worker.actor.ready.remote())
        except ray.exceptions.RayActorError:
            continue
        if said["pid"] != worker.pid:
            return said


def test_the_loss_of_an_idle_worker_is_reported(pool: WorkerPool):
    pool.want(2)
    until(pool, lambda: pool.count()[Phase.READY] == 2)
    lost = pool.ready()[1]
    os.kill(before := lost.pid, signal.SIGKILL)
    until(pool, lambda: bool(pool._lost_idle))
    assert pool.drain_lost_idle() == ["worker 1 was lost while it had nothing to do, and is started again"]
    assert pool.acquire(9).worker.number == 0 and not pool.drain_lost_idle()
    until(pool, lambda: pool.count()[Phase.READY] == 2)
    assert lost.pid != before and pool.acquire(9).worker is lost


def test_one_that_was_started_again_before_its_call_came_says_so_in_its_report(pool: WorkerPool):
    pool.want(1)
    until(pool, lambda: pool.count()[Phase.READY] == 1)
    worker = pool.acquire(1).worker
    said = lose(worker)
    pool.poll()
    assert pool.count() == {Phase.READY: 1} and not pool.drain_lost_idle(), "its call would tell"
    assert pool.renewed(0, said["up"], "here", said["pid"])
    assert worker.pid == said["pid"] and worker.given == 1
    assert not pool.renewed(0, said["up"], "here", said["pid"])
    pool.release_all()
    pool.poll()
    assert pool.count() == {Phase.READY: 1}, "the new process is the one that is watched"


def test_a_spare_takes_the_place_of_one_that_fails_and_that_one_is_spare_then(ray_cluster: None, broken: Path):
    made = WorkerPool(lambda number: Standin.remote(str(broken)), spares=1)
    try:
        made.want(1)
        until(made, lambda: made.count()[Phase.READY] == 2)
        first = made.active()[0]
        assert made.acquire(1).worker is first and made.acquire(1) is None, "spares get no work"
        os.kill(first.pid, signal.SIGKILL)
        assert made.failed(first.number)
        second = made.acquire(1).worker
        assert second is not first
        made.release_all()
        until(made, lambda: made.count()[Phase.READY] == 2)
        assert made.active() == [second] and made.acquire(1).worker is second
        made.want(2)
        assert first in made.active() and made.count() == {Phase.READY: 2, Phase.STARTING: 1}
        made.want(1)
        assert made.count() == {Phase.READY: 2}
    finally:
        made.stop()


def test_one_that_has_a_place_and_never_answers_is_killed_and_started_again(ray_cluster: None, broken: Path):
    ahead = [0.0]

    def clock() -> float:
        return time.monotonic() + ahead[0]

    made, began = WorkerPool(lambda number: Standin.remote(str(broken)), clock=clock), clock()
    broken.write_text("for ever")

    def later() -> bool:
        ahead[0] += LOOK_SECONDS
        return bool(made._abandoned)

    try:
        made.want(1)
        until(made, later, 60.0)
        assert clock() - began > START_SECONDS
        assert made.drain_abandoned() == [f"worker 0 did not answer for {START_SECONDS:.0f} s and was killed"]
        broken.unlink()
        until(made, lambda: made.count()[Phase.READY] == 1, 60.0)
        stopped = ray.get(made.ready()[0].actor.ready.remote())["pid"]
        os.kill(stopped, signal.SIGSTOP)
        assert made.failed(0) and made.count() == {Phase.UNHEALTHY: 1}
        until(made, later, 60.0)
        until(made, lambda: made.count()[Phase.READY] == 1, 60.0)
        assert made.ready()[0].number == 0 and ray.get(made.ready()[0].actor.ready.remote())["pid"] != stopped
    finally:
        made.stop()


def test_one_that_waits_for_a_node_may_wait_for_ever(ray_cluster: None, broken: Path):
    now = [0.0]
    made = WorkerPool(lambda number: Standin.options(num_cpus=1000).remote(str(broken)), clock=lambda: now[0])
    made.want(1)
    for _ in range(5):
        now[0] += START_SECONDS
        made.poll()
    assert made.count() == {Phase.STARTING: 1} and not made.drain_abandoned()
    made.stop()


def test_who_leaves_first():
    def worker(number: int, node: str | None, phase: Phase = Phase.READY) -> PooledWorker:
        return PooledWorker(number, None, phase, node=node)

    crew = [worker(0, "home"), worker(1, "home"), worker(2, "a"), worker(3, "b"), worker(4, "b")]
    order = []
    while crew:
        order.append(first_to_leave(crew, "home"))
        crew.remove(order[-1])
    assert [one.number for one in order] == [2, 4, 3, 1, 0]
    crew = [worker(0, "a"), worker(1, None, Phase.STARTING), worker(2, "b", Phase.UNHEALTHY)]
    assert first_to_leave(crew, "home").number in (1, 2)
