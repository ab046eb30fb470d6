"""`mtrl` in processes of its own, and the certainty that none of them outlives its test."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
SOURCES = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "envs", ROOT / "cluster"))
"""Of this checkout's packages, as a PYTHONPATH."""


def environment(**changes: str) -> dict[str, str]:
    """This process's environment for a child that imports the checkout, away from any cluster; `changes` on top."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "PATH": path, "PYTHONPATH": SOURCES, "RAY_USAGE_STATS_ENABLED": "0", **changes}


def mtrl(
    *arguments: str, said: str | None = None, seconds: float = 200, folder: Path = ROOT, **changes: str
) -> subprocess.CompletedProcess:
    """Run `mtrl ARGUMENTS` in a folder to its end; `said` is its standard input.

    -P: as for the installed command, the current folder is not on Python's path.
    """
    return subprocess.run(
        [sys.executable, "-P", "-m", "mtrl_ray", *arguments],
        input=said,
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=folder,
        env=environment(**changes),
        check=False,
    )


def background(log: Path, *arguments: str) -> subprocess.Popen:
    """Start `mtrl ARGUMENTS`, what it says going to the file `log`."""
    command = [sys.executable, "-m", "mtrl_ray", *arguments]
    with log.open("w") as said:
        return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=said, stderr=said)


def family(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def survivors(processes: Iterable[psutil.Process], seconds: float) -> list[str]:
    """Names of those that still run after at most `seconds`; they are then killed."""
    _, alive = psutil.wait_procs(list(processes), timeout=seconds)
    names = []
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(" ".join(process.cmdline()).strip())
            process.kill()
    psutil.wait_procs(alive, timeout=10)
    return names


def wait_until(holds: Callable[[], bool], seconds: float, process: subprocess.Popen | None = None) -> None:
    """Wait for a condition; fail where it does not come true in time, or where `process` ends before."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"nothing happened for {seconds} s"
        assert process is None or process.poll() is None, f"the process ended early with code {process.returncode}"
        time.sleep(0.01)
