"""Start a Ray worker process as a fork of this machine's fork server: what Ray runs instead of `python`.

`python -m mtrl_cluster.fork_client MODULES -- SCRIPT ARGUMENTS…` is `python SCRIPT ARGUMENTS…`, except that the process is a
child of a server that has already imported the modules (comma-separated; `mtrl_cluster.fork_server`). If no server answers,
the script runs normally. Only the standard library, and little of it: every start passes through this process.
"""

import hashlib
import json
import os
import socket
import struct
import sys
import time

SEPARATOR = "--"
RAYLET = "RAY_RAYLET_PID"
"""Environment variable in which Ray tells a worker its raylet."""
CONNECT_SECONDS = 10.0
"""For a server that was just started to listen."""
FORK_SECONDS = 45.0
"""For a server to import and to fork. Ray gives a worker up that has not registered after 60."""
FORKED = b"1"
VOLATILE = ("PWD", "OLDPWD", "SHLVL", "_", "LINES", "COLUMNS", "PYTEST_CURRENT_TEST")
"""Variables that differ between processes which may share a server; Ray's own, which it gives each process, do too."""


def address() -> str:
    """Of the server for processes like this one, in Linux's abstract namespace: the same user, interpreter, installed
    packages, environment and namespaces of processes and files."""
    environment = {
        name: value for name, value in os.environ.items() if name not in VOLATILE and not name.startswith("RAY_")
    }
    packages = [folder for folder in sys.path if folder.endswith(("site-packages", "dist-packages"))]
    changed = [(folder, os.stat(folder).st_mtime_ns) for folder in packages if os.path.isdir(folder)]
    spaces = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "mnt")]
    shared = json.dumps([os.getuid(), sys.executable, sorted(environment.items()), changed, spaces])
    return f"\0mtrl-ray-fork-{hashlib.sha256(shared.encode()).hexdigest()[:32]}"


def is_own(peer: socket.socket) -> bool:
    """Whether the peer process belongs to this user: any user may listen at an abstract address or connect to it."""
    layout = struct.Struct("3i")  # process, user, group
    _, user, _ = layout.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size))
    return bool(user == os.getuid())


def is_forked(modules: list[str], command: list[str]) -> bool:
    """Whether a server runs the command now, with this process's environment, folder and standard streams."""
    raylet = os.environ.get(RAYLET, "")
    if not raylet.isdecimal() or not sys.platform.startswith("linux"):
        return False
    try:
        os.close(os.pidfd_open(int(raylet)))  # what the server does: not every kernel can
        with _connected(address(), raylet) as peer:
            peer.settimeout(FORK_SECONDS)
            order = json.dumps([modules, command, dict(os.environ), os.getcwd()]).encode()
            socket.send_fds(peer, [struct.pack("!I", len(order))], [0, 1, 2])
            peer.sendall(order)
            return peer.recv(1) == FORKED
    except OSError:
        return False


def _connected(name: str, raylet: str) -> socket.socket:
    """A connection to the server, which is started if there is none. Raises OSError."""
    deadline, started = time.monotonic() + CONNECT_SECONDS, False
    while True:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            peer.connect(name)
            if not is_own(peer):
                raise PermissionError("another user's process listens at the fork server's address")
            return peer
        except ConnectionRefusedError:
            peer.close()
            if time.monotonic() > deadline:
                raise
        except OSError:
            peer.close()
            raise
        if not started:
            _start_server(name, raylet)
            started = True
        time.sleep(0.02)


def _start_server(name: str, raylet: str) -> None:
    """In a session of its own, and no child of this process, which it outlives; of its streams standard error alone."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.execv(sys.executable, [sys.executable, "-m", "mtrl_cluster.fork_server", name[1:], raylet])


def main() -> None:
    """See the module's docstring."""
    modules, separator, *command = sys.argv[1:]
    if separator != SEPARATOR or not command:
        raise SystemExit(f"usage: python -m mtrl_cluster.fork_client MODULES {SEPARATOR} SCRIPT ARGUMENTS…")
    if not is_forked(modules.split(","), command):
        os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
