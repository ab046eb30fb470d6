"""Scaling requests from other processes to a live run, through two small files in the run's folder.

The driver keeps `fleet.json`: the bounds, how many workers there are in which phase, who decides, and the last request that it
has processed. The file is removed when the run ends. `ask` writes `scale.json` and waits for the answer in `fleet.json`. Any
process on any node that sees the run's folder can ask, without a connection to Ray. A request without an answer is withdrawn.
Both files are replaced in one step.
"""

import json
import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtrl_ray.errors import ConfigurationError, EngineError

STATE, REQUEST = "fleet.json", "scale.json"
PATIENCE_SECONDS = 30.0
"""For a live driver to process a request, shared file systems included."""
AGAIN_SECONDS = 0.1


@dataclass(frozen=True)
class FleetState:
    """What `fleet.json` says. `by`: "demand" or "hand"; `last_request`: id of the last one processed."""

    least: int
    most: int
    wanted: int
    ready: int = 0
    starting: int = 0
    unhealthy: int = 0
    leaving: int = 0
    by: str = "demand"
    last_request: str | None = None
    host: str = ""
    pid: int = 0


@dataclass(frozen=True)
class ScaleRequest:
    """`workers`: the number asked for; None: the policy's."""

    id: str
    workers: int | None


def write_state(folder: Path, state: FleetState) -> None:
    """Write the state of the fleet, with this process as the driver."""
    _replace(folder / STATE, {**asdict(state), "host": socket.gethostname(), "pid": os.getpid()})


def read_state(folder: Path) -> FleetState | None:
    """The state of the fleet; None if no driver has written it."""
    tree = _read(folder / STATE)
    if tree is not None and "heard" in tree:  # written by a driver of version 0.1
        tree["last_request"] = tree.pop("heard")
    try:
        return None if tree is None else FleetState(**tree)
    except TypeError:
        return None


def read_request(folder: Path) -> ScaleRequest | None:
    """The requested scale; None if there is no readable request."""
    tree = _read(folder / REQUEST)
    if tree is None or not isinstance(tree.get("id"), str):
        return None
    workers = tree.get("workers")
    return ScaleRequest(tree["id"], workers if isinstance(workers, int) and not isinstance(workers, bool) else None)


def clear(folder: Path) -> None:
    """Remove the files of an earlier driver and of requests to it."""
    for name in (STATE, REQUEST):
        (folder / name).unlink(missing_ok=True)


def ask(folder: Path, workers: int | None, patience: float = PATIENCE_SECONDS) -> FleetState:
    """Request this many workers from a live run (None: as the policy decides); returns the fleet's new state.

    Raises ConfigurationError for a number outside the run's bounds, EngineError if the run is not live.
    """
    state = living(folder)
    if workers is not None and not state.least <= workers <= state.most:
        raise ConfigurationError(
            f"{workers} workers are outside of what the run {str(folder)!r} allows: {state.least} to {state.most} "
            "(rollout.workers); resume it with other bounds to change them"
        )
    request = ScaleRequest(uuid.uuid4().hex, workers)
    _replace(folder / REQUEST, asdict(request))
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        now = read_state(folder)
        if now is not None and now.last_request == request.id:
            return now
        time.sleep(AGAIN_SECONDS)
    if read_request(folder) == request:
        (folder / REQUEST).unlink(missing_ok=True)
    raise EngineError(f"the run {str(folder)!r} did not answer within {patience:.0f} s; its driver is gone or hangs")


def living(folder: Path) -> FleetState:
    """The state of a run that is trained now. Raises EngineError if it is not."""
    state = read_state(folder)
    if state is None or (state.host == socket.gethostname() and not _runs(state.pid)):
        raise EngineError(
            f"the run {str(folder)!r} is not being trained now; start it again with: mtrl train --resume {folder}"
        )
    return state


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of another user
        return True
    return True


def _read(path: Path) -> dict[str, Any] | None:
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None


def _replace(path: Path, tree: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(tree) + "\n")
    temporary.replace(path)
