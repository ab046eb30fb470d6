"""One driver per run: a lock on `RUN/.lock`, which lasts as long as the driver lives.

The operating system releases it when the driver ends, however it ends. Processes that the driver starts do not inherit it. The
file says who held it last, and stays, unless nothing else came into a new folder. `--fresh` leaves it, because its own driver
holds it by then. If a filesystem has no such locks, or the folder cannot be written, the run goes on without one.
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mtrl_ray.errors import ConfigurationError

LOCK = ".lock"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of the run in this folder, which is made; no other process can drive it inside this context.

    Raises ConfigurationError if another process does.
    """
    there = folder.exists()
    lock = _locked(folder)
    try:
        yield
    finally:
        if lock is not None:
            if not there and [entry.name for entry in folder.iterdir()] == [LOCK]:  # nothing was begun
                (folder / LOCK).unlink()
                folder.rmdir()
            lock.close()


def _locked(folder: Path) -> IO[str] | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+")
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        raise ConfigurationError(
            f"the run {str(folder)!r} is driven by another process{f' ({holder})' if holder else ''}; wait for its end, "
            "stop it, or choose another run.name"
        ) from None
    except OSError:
        return lock
    with suppress(OSError):  # a full disk
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
    return lock
