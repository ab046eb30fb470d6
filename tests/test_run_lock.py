"""One driver per run: a second one is refused, a killed one is in nobody's way."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mtrl_ray.commands.train import train
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.run.folder import prepare
from mtrl_ray.run.lock import LOCK, run_lock
from mtrl_ray.run.recipes import load
from tests.support.processes import ROOT, environment

DRIVER = """
import subprocess, sys
from pathlib import Path
from mtrl_ray.run.lock import run_lock
with run_lock(Path(sys.argv[1])):
    left = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, close_fds=False)
    print(left.pid, flush=True)
    left.wait()
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_that_is_driven_is_neither_continued_nor_replaced(tmp_path: Path):
    given = ["sales", [f"run.folder={tmp_path}", "run.name=first"]]
    folder = tmp_path / "first"
    with run_lock(folder):
        prepare(load(*given), fresh=False, command="mtrl train sales")
        before = contents(folder)
        for again in ({"resume": folder, "recipe": None, "overrides": ["run.iterations=7"]}, {"fresh": True}):
            with pytest.raises(ConfigurationError, match="is driven by another process") as refused:
                train(**{"recipe": given[0], "overrides": given[1], **again})
            assert str(refused.value) == (
                f"the run {str(folder)!r} is driven by another process (process {os.getpid()} on {socket.gethostname()}); "
                "wait for its end, stop it, or choose another run.name"
            )
        assert contents(folder) == before
        prepare(load(*given), fresh=True, command="mtrl train sales --fresh")
        assert set(contents(folder)) == {LOCK, "command.txt", "config.yaml"}
        with pytest.raises(ConfigurationError, match="is driven by"), run_lock(folder):
            pass
    with run_lock(folder):
        pass


def test_the_lock_of_a_killed_driver_is_gone_though_what_it_started_lives_on(tmp_path: Path):
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    driver = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    left = int(driver.stdout.readline())
    try:
        with pytest.raises(ConfigurationError, match=f"process {driver.pid} on"), run_lock(tmp_path):
            pass
        driver.kill()
        driver.communicate()
        os.kill(left, 0)
        with run_lock(tmp_path):
            assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    finally:
        driver.kill()
        os.kill(left, signal.SIGKILL)


def test_where_there_are_no_locks_a_run_goes_on_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_locks(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with run_lock(tmp_path / "run"), run_lock(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    (tmp_path / "file").touch()
    with run_lock(tmp_path / "file" / "run"):
        assert (tmp_path / "file").is_file(), "whoever writes there says what is wrong"
