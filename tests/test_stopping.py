"""How long a stop signal waits for what is under way."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator

import pytest

from mtrl_ray.run import stopping
from mtrl_ray.run.stopping import Stopped, StopSignal, exit_code


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(stopping, "LATEST_SECONDS", 0.6)


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    listener = StopSignal()
    with listener.listening():
        yield listener


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


def test_what_no_handler_reaches_is_ended_with_the_process():
    """The main thread waits outside Python for a file that never ends."""
    hanging = """
import os, signal, pyarrow.fs as fs
from mtrl_ray.run import stopping
stopping.LAST_SECONDS = 0.5
os.mkfifo("pipe")
stop = stopping.StopSignal(ends_process=True)
with stop.listening(), stop.answered("held"):
    print("listening", flush=True)
    fs.copy_files("pipe", "copy")
"""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", hanging], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "listening\n"
        process.terminate()
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 143 and said.startswith("SIGTERM came 0.5 s ago"), said


def test_a_second_signal_is_obeyed_silently():
    """What hears the first one keeps listening."""
    script = """
import os, signal, threading
from mtrl_ray.run import stopping
stop = stopping.StopSignal(ends_process=True)
try:
    with stop.listening(), stop.answered("grace"):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    pass
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""


def test_a_run_that_ends_in_time_is_not_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stopping, "LAST_SECONDS", 0.2)
    listener = StopSignal(ends_process=True)

    def interrupted() -> None:
        with listener.listening():
            ask()
            hang()

    with pytest.raises(Stopped):
        interrupted()
    threading.Event().wait(0.4)
    assert signal.set_wakeup_fd(-1) == -1, "no signal is received any more"


def test_of_two_that_listen_the_inner_hears_and_the_outer_passes_on():
    outer, inner = StopSignal(), StopSignal()

    def nested() -> None:
        with outer.listening(), inner.listening():
            ask()
            hang()

    with pytest.raises(Stopped) as stopped:
        nested()
    assert (outer.number, inner.number, exit_code(stopped.value)) == (None, signal.SIGTERM, 143)
    assert exit_code(KeyboardInterrupt()) == 130
