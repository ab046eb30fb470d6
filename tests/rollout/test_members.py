"""Who is in the fleet, with real actors that stand in for workers: joining, falling ill, leaving, being given up."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from mtrl_ray.rollout.members import Member, Members, Phase, first_to_leave


@ray.remote(num_cpus=0, max_restarts=-1)
class Standin:
    """Answers `ready` as a worker does; cannot start where its file exists."""

    def __init__(self, broken: str) -> None:
        if Path(broken).exists():
            raise RuntimeError("no engine here")
        self._up = time.time()

    def ready(self) -> dict[str, object]:
        return {"node": "here", "up": self._up, "pid": os.getpid()}


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
