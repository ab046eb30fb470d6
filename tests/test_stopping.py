"""How long a stop signal waits for what is under way."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from mtrl_ray import stopping
from mtrl_ray.stopping import Stopped, StopSignal


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(stopping, "LATEST_SECONDS", 0.6)


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    heard = StopSignal()
    with heard.listening():
        yield heard


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def hang() -> None:
    threading.Event().wait(60)
    pytest.fail("it was waited for")


@pytest.mark.parametrize("manner", ["grace", "held"])
def test_what_hangs_is_given_up(stop: StopSignal, manner):
    def hanging() -> None:
        with stop.answered(manner):
            ask()
            hang()

    with pytest.raises(Stopped):
        hanging()
    assert stop.number == signal.SIGTERM


def test_a_checkpoint_after_an_iteration_that_ended_in_time_is_bounded_too(stop: StopSignal):
    with stop.answered("grace"):
        ask()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    with pytest.raises(Stopped), stop.answered("held"):
        hang()


def test_what_ends_in_time_ends_by_itself(stop: StopSignal):
    with stop.answered("held"):
        ask()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    with pytest.raises(Stopped):
        stop.check()


def test_without_a_signal_nothing_is_bounded(stop: StopSignal):
    for manner in ("grace", "held"):
        with stop.answered(manner):
            assert signal.getitimer(signal.ITIMER_REAL)[0] in (0, pytest.approx(300, abs=60)), "pytest's own at most"
    stop.check()
