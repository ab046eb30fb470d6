"""Who is in the fleet, with real actors that stand in for workers: joining, falling ill, leaving, being given up."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from mtrl_ray.rollout.members import LOOK_SECONDS, START_SECONDS, Member, Members, Phase, first_to_leave


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
def members(ray_cluster: None, broken: Path):
    made = Members(lambda number: Standin.remote(str(broken)), home="here")
    yield made
    made.stop()


def until(members: Members, holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Attend until a condition holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, members.count()
        members.attend()
        time.sleep(0.02)


def test_they_join_and_the_least_loaded_takes_work(members: Members):
    members.want(2)
    assert members.count() == {Phase.STARTING: 2} and members.take(9) is None
    until(members, lambda: members.count()[Phase.READY] == 2)
    load = members.unburden()
    taken = [members.take(2) for _ in range(5)]
    assert [one and one.number for one in taken] == [0, 1, 0, 1, None]
    load[1] -= 1
    assert members.take(2).number == 1


def test_one_that_leaves_gets_no_work_and_ends_when_it_holds_none(members: Members):
    members.want(2)
    until(members, lambda: members.count()[Phase.READY] == 2)
    load = members.unburden()
    held = [members.take(5) for _ in range(4)]
    members.want(1)
    members.attend()
    assert members.count() == {Phase.READY: 1, Phase.LEAVING: 1}
    assert {members.take(9).number for _ in range(3)} == {0}
    assert ray.get(held[1].actor.ready.remote())["pid"], "it still works"
    load[1] -= 2
    members.attend()
    assert members.count() == {Phase.READY: 1}

    def ended() -> bool:
        try:
            ray.get(held[1].actor.ready.remote())
        except ray.exceptions.RayActorError:
            return True
        return False

    until(members, ended)


def test_one_that_leaves_is_called_back_where_it_is_wanted_again(members: Members):
    members.want(2)
    until(members, lambda: members.count()[Phase.READY] == 2)
    members.unburden()
    members.take(1), members.take(1)
    members.want(1)
    members.want(2)
    assert members.count() == {Phase.READY: 2} and [one.number for one in members.ready()] == [0, 1]


def test_one_that_leaves_finishes_what_it_holds_though_one_of_its_calls_failed(members: Members):
    members.want(2)
    until(members, lambda: members.count()[Phase.READY] == 2)
    load = members.unburden()
    held = [members.take(5) for _ in range(4)][1]
    assert held.number == 1
    load[1] -= 1
    assert members.failed(1)
    members.want(1)
    members.attend()
    assert members.count() == {Phase.READY: 1, Phase.LEAVING: 1} and not members.failed(1)
    members.want(2)
    assert members.count() == {Phase.READY: 1, Phase.ILL: 1}, "it comes back as what it was"
    until(members, lambda: members.count()[Phase.READY] == 2)
    members.want(1)
    assert members.failed(1), "as it leaves"
    members.attend()
    assert members.count() == {Phase.READY: 1, Phase.LEAVING: 1} and not members.awaited()
    assert ray.get(held.actor.ready.remote())["pid"], "it still works"
    load[1] -= 1
    members.attend()
    assert members.count() == {Phase.READY: 1}


def test_one_that_fails_gets_no_work_until_it_answers_again(members: Members):
    members.want(1)
    until(members, lambda: members.count()[Phase.READY] == 1)
    before = ray.get(members.ready()[0].actor.ready.remote())["pid"]
    members.restart(0)
    assert members.count() == {Phase.ILL: 1} and members.take(9) is None and not members.failed(0)
    until(members, lambda: members.count()[Phase.READY] == 1)
    again = members.take(9)
    assert again.number == 0 and ray.get(again.actor.ready.remote())["pid"] != before


def test_one_that_ray_gives_up_is_replaced_after_a_pause(members: Members, broken: Path):
    broken.touch()
    members.want(1)
    until(members, lambda: not members.count())
    lost = members.lost()
    assert len(lost) == 1 and "worker 0 cannot be started" in lost[0] and "no engine here" in lost[0]
    members.attend()
    assert not members.count() and not members.lost(), "not at once"
    broken.unlink()
    until(members, lambda: members.count()[Phase.READY] == 1)
    assert members.take(1).number == 1


def lose(member: Member) -> dict[str, object]:
    """Kill its process; what the next one says when Ray has started it."""
    os.kill(member.pid, signal.SIGKILL)
    while True:
        try:
            said = ray.get(member.actor.ready.remote())
        except ray.exceptions.RayActorError:
            continue
        if said["pid"] != member.pid:
            return said


def test_one_that_is_lost_while_it_holds_nothing_is_heard_of(members: Members):
    members.want(2)
    until(members, lambda: members.count()[Phase.READY] == 2)
    lost = members.ready()[1]
    os.kill(before := lost.pid, signal.SIGKILL)
    until(members, lambda: bool(members._fallen))
    assert members.fallen() == ["worker 1 was lost while it had nothing to do, and is started again"]
    assert members.take(9).number == 0 and not members.fallen()
    until(members, lambda: members.count()[Phase.READY] == 2)
    assert lost.pid != before and members.take(9) is lost


def test_one_that_was_started_again_before_its_call_came_says_so_in_its_report(members: Members):
    members.want(1)
    until(members, lambda: members.count()[Phase.READY] == 1)
    member = members.take(1)
    said = lose(member)
    members.attend()
    assert members.count() == {Phase.READY: 1} and not members.fallen(), "its call would tell"
    assert members.renewed(0, said["up"], "here", said["pid"])
    assert member.pid == said["pid"] and member.given == 1
    assert not members.renewed(0, said["up"], "here", said["pid"])
    members.unburden()
    members.attend()
    assert members.count() == {Phase.READY: 1}, "the new process is the one that is watched"


def test_a_spare_takes_the_place_of_one_that_fails_and_that_one_is_spare_then(ray_cluster: None, broken: Path):
    made = Members(lambda number: Standin.remote(str(broken)), spares=1)
    try:
        made.want(1)
        until(made, lambda: made.count()[Phase.READY] == 2)
        first = made.active()[0]
        assert made.take(1) is first and made.take(1) is None, "spares get no work"
        os.kill(first.pid, signal.SIGKILL)
        assert made.failed(first.number)
        second = made.take(1)
        assert second is not None and second is not first
        made.unburden()
        until(made, lambda: made.count()[Phase.READY] == 2)
        assert made.active() == [second] and made.take(1) is second
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

    made, began = Members(lambda number: Standin.remote(str(broken)), clock=clock), clock()
    broken.write_text("for ever")

    def later() -> bool:
        ahead[0] += LOOK_SECONDS
        return bool(made._lost)

    try:
        made.want(1)
        until(made, later, 60.0)
        assert clock() - began > START_SECONDS
        assert made.lost() == [f"worker 0 did not answer for {START_SECONDS:.0f} s and was killed"]
        broken.unlink()
        until(made, lambda: made.count()[Phase.READY] == 1, 60.0)
        stopped = ray.get(made.ready()[0].actor.ready.remote())["pid"]
        os.kill(stopped, signal.SIGSTOP)
        assert made.failed(0) and made.count() == {Phase.ILL: 1}
        until(made, later, 60.0)
        until(made, lambda: made.count()[Phase.READY] == 1, 60.0)
        assert made.ready()[0].number == 0 and ray.get(made.ready()[0].actor.ready.remote())["pid"] != stopped
    finally:
        made.stop()


def test_one_that_waits_for_a_node_may_wait_for_ever(ray_cluster: None, broken: Path):
    now = [0.0]
    made = Members(lambda number: Standin.options(num_cpus=1000).remote(str(broken)), clock=lambda: now[0])
    made.want(1)
    for _ in range(5):
        now[0] += START_SECONDS
        made.attend()
    assert made.count() == {Phase.STARTING: 1} and not made.lost()
    made.stop()


def test_who_leaves_first():
    def member(number: int, node: str | None, phase: Phase = Phase.READY) -> Member:
        return Member(number, None, phase, node=node)

    crew = [member(0, "home"), member(1, "home"), member(2, "a"), member(3, "b"), member(4, "b")]
    order = []
    while crew:
        order.append(first_to_leave(crew, "home"))
        crew.remove(order[-1])
    assert [one.number for one in order] == [2, 4, 3, 1, 0]
    crew = [member(0, "a"), member(1, None, Phase.STARTING), member(2, "b", Phase.ILL)]
    assert first_to_leave(crew, "home").number in (1, 2)
