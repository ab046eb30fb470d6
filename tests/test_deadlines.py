"""Calls with a deadline: threads that are used again, what is late, what is raised."""

import threading

import pytest

from mtrl_ray.errors import DataError, EngineError
from mtrl_ray.processes import deadlines
from mtrl_ray.processes.deadlines import Calls


def test_a_call_gives_what_it_gives_and_raises_what_it_raises():
    calls = Calls(30.0)
    assert calls.run("it", max, 1, 2, alive=lambda: None) == 2
    with pytest.raises(ZeroDivisionError):
        calls.run("it", lambda: 1 / 0, alive=lambda: None)
    with pytest.raises(TimeoutError, match="of its own"):
        calls.run("it", _raise, TimeoutError("of its own"), alive=lambda: None)
    with pytest.raises(DataError, match="it raised KeyboardInterrupt"):
        calls.run("it", _raise, KeyboardInterrupt(), alive=lambda: None)


def _raise(error: BaseException) -> None:
    raise error


def test_calls_one_after_another_share_a_thread():
    calls = Calls(30.0)
    assert len({calls.run("it", threading.get_ident, alive=lambda: None) for _ in range(20)}) == 1


def test_a_late_call_is_left_behind_and_the_next_has_another_thread(monkeypatch):
    monkeypatch.setattr(deadlines, "SLICE_SECONDS", 0.05)
    calls, never, signs = Calls(0.2), threading.Event(), []
    with pytest.raises(DataError, match=r"the user did not answer within 0.2 s \(rollout.user_seconds\)"):
        calls.run("the user", never.wait, 60, alive=lambda: signs.append(1))
    assert len(signs) >= 2 and calls.run("it", int, "7", alive=lambda: None) == 7
    never.set()


def test_submitted_calls_run_side_by_side_and_are_late_each_for_itself():
    now, never = [0.0], threading.Event()
    calls = Calls(5.0, clock=lambda: now[0])
    meeting = threading.Barrier(3)
    together = [calls.submit("it", meeting.wait, 30) for _ in range(3)]
    assert sorted(future.result(30) for future in together) == [0, 1, 2]
    late = calls.submit("the first user", never.wait, 60)
    now[0] = 4.0
    later = calls.submit("the second user", never.wait, 60)
    now[0] = 6.0
    calls.expire()
    assert not later.done()
    with pytest.raises(EngineError, match="the first user did not answer within 5 s"):
        late.result(0)
    never.set()
    assert later.result(30) is True
