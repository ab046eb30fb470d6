"""One process on each machine that imports the packages of engines and learners once, and forks their processes.

Nine tenths of the start of an engine with a small model are imports of torch and vLLM (12 s of CPU time). Here they run
once; a fork shares their memory. `python -m mtrl_cluster.fork_server NAME RAYLET` is started by the first
client (`mtrl_cluster.fork_client`) and ends when none of the raylets that it served runs any more, or `IDLE_SECONDS` after
its last fork has ended.

1. A fork has one thread, even if its parent had more, and no GPU context. If an import has started either, the
   server rejects all clients, and they start their processes normally. The threads of BLAS libraries and allocators
   do not count: they prepare for forks (pthread_atfork).
2. Ray reads its settings from the environment when it is imported, once, and each raylet gives its workers others. So a server
   that imported Ray also rejects all clients.
3. This project's own modules are not imported: on a cluster that outlives a run they may change. Nor do packages that are
   installed anew meet a server that has the old ones (`fork_client.address`).
4. One order at a time: clients that come while modules are imported wait for them.
"""

import errno
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Any

from mtrl_cluster.fork_client import FORKED, RAYLET, is_own

ORDER_SECONDS = 10.0
"""For a client to say what it wants."""
IDLE_SECONDS = 600.0
"""Without a fork that runs."""
LOOK_SECONDS = 1.0
"""Between two looks at which forks have ended."""


@dataclass(frozen=True)
class Order:
    """A process that a client wants: its modules, script and arguments, environment, folder and standard streams."""

    modules: list[str]
    command: list[str]
    environment: dict[str, str]
    folder: str
    streams: list[int]


class ForkServer:
    """See the module's docstring."""

    def __init__(self, listener: socket.socket, raylet: int) -> None:
        self._listener = listener
        self._raylets: dict[int, int] = {}  # process: descriptor that is readable when it has ended
        self._tried: set[str] = set()  # modules
        self._forks, self._busy = 0, time.monotonic()
        self._watch(raylet)

    def serve(self) -> Order | None:
        """Returns in each fork, with its order; in the server, with None, when no client needs it any more."""
        while self._raylets and (self._forks or time.monotonic() - self._busy < IDLE_SECONDS):
            awaited: list[Any] = [self._listener, *self._raylets.values()]
            ready, _, _ = select.select(awaited, [], [], LOOK_SECONDS)
            self._reap()
            for process, descriptor in list(self._raylets.items()):
                if descriptor in ready:
                    os.close(self._raylets.pop(process))
            if self._listener in ready:
                peer, _ = self._listener.accept()
                with peer:
                    order = self._forked(peer)
                if order is not None:
                    return order
        return None

    def _forked(self, peer: socket.socket) -> Order | None:
        """The order in the fork, None in the server."""
        order = received(peer)
        if order is None:
            return None
        child: int | None = None
        try:
            self._preload(order.modules)
            if is_safe_to_fork():
                self._watch(int(order.environment[RAYLET]))
                peer.sendall(FORKED)  # fails where the client has given up and started its process itself
                child = os.fork()
        except (OSError, ValueError, KeyError):
            traceback.print_exc()
        if child == 0:
            self._leave()
            return order
        if child is not None:
            self._forks, self._busy = self._forks + 1, time.monotonic()
        for stream in order.streams:
            os.close(stream)
        return None

    def _preload(self, modules: list[str]) -> None:
        """Import these, and set them aside from the search for garbage; one that cannot be imported is left to the fork."""
        missing = [name for name in modules if name not in self._tried]
        self._tried |= set(missing)
        for name in missing:
            try:
                importlib.import_module(name)
            except Exception:
                traceback.print_exc()
        if missing:
            gc.collect()
            gc.freeze()

    def _watch(self, raylet: int) -> None:
        if raylet not in self._raylets:
            self._raylets[raylet] = os.pidfd_open(raylet)

    def _reap(self) -> None:
        while self._forks and os.waitpid(-1, os.WNOHANG)[0]:
            self._forks, self._busy = self._forks - 1, time.monotonic()

    def _leave(self) -> None:
        """In a fork: close the server's open files."""
        self._listener.close()
        for descriptor in self._raylets.values():
            os.close(descriptor)


def received(peer: socket.socket) -> Order | None:
    """The client's order; None if it is another user's process or the order cannot be read."""
    peer.settimeout(ORDER_SECONDS)
    streams: list[int] = []
    try:
        if not is_own(peer):
            return None
        head, streams, _, _ = socket.recv_fds(peer, 4, 3)
        (size,) = struct.unpack("!I", head)
        with peer.makefile("rb") as text:
            modules, command, environment, folder = json.loads(text.read(size))
        if len(streams) == 3:
            return Order(list(modules), list(command), dict(environment), str(folder), streams)
    except (OSError, ValueError, TypeError, struct.error):
        traceback.print_exc()
    for stream in streams:
        os.close(stream)
    return None


def is_safe_to_fork() -> bool:
    """Whether a fork of this process would be usable: one thread, no GPU context, no Ray."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_initialized()
    return threading.active_count() == 1 and not on_gpu and "ray" not in sys.modules


def become(order: Order) -> None:
    """Make this fork the process that the client would have been, and run its script to the end.

    In a process group of its own: Ray ends a worker's whole group. With random states of its own.
    """
    os.setpgid(0, 0)
    for place, stream in enumerate(order.streams):
        os.dup2(stream, place)
        os.close(stream)
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    random.seed()
    for name, generator in (("numpy", "random"), ("torch", "random")):
        if name in sys.modules:
            getattr(sys.modules[name], generator).seed()
    gc.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = order.command
    sys.path[0] = os.path.dirname(order.command[0])
    runpy.run_path(order.command[0], run_name="__main__")


def main() -> None:
    """See the module's docstring."""
    name, raylet = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started the raylet, which ends its workers
    gc.disable()  # while modules are imported, what they make stays
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(f"\0{name}")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # another client's server was quicker
            return
        raise
    listener.listen(128)
    order = ForkServer(listener, int(raylet)).serve()
    if order is not None:
        become(order)


if __name__ == "__main__":
    main()
