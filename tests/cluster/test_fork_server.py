"""Processes that are forks of a server: what they are, when they are not, and when the server ends. Real processes, a `sleep`
in the raylet's place."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.processes import environment, wait_until

SCRIPT = """
import json, os, random, sys
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0), "name": __name__, "arguments": sys.argv[1:],
    "folder": os.getcwd(), "variable": os.environ.get("WHAT_IT_IS_TOLD"), "random": random.random(),
    "path": sys.path[0], "preloaded": "colorsys" in sys.modules, "said": sys.stdin.read(),
}), flush=True)
if "fail" in sys.argv:
    sys.exit(3)
"""
SECONDS = 60.0


@pytest.fixture
def raylet() -> Iterator[subprocess.Popen]:
    """Stands for one: a process that runs."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def start(raylet: subprocess.Popen, script: Path, tmp_path: Path):
    """Starts the script as Ray would; gives the client's process."""

    def started(modules: str, *arguments: str, **variables: str) -> subprocess.Popen:
        own = {"RAY_RAYLET_PID": str(raylet.pid), "SERVER_OF_THIS_TEST": str(tmp_path)} | variables
        client = subprocess.Popen(
            [sys.executable, "-m", "mtrl_cluster.fork_client", modules, "--", str(script), *arguments],
            env=environment(**own),
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return client

    return started


def told(client: subprocess.Popen, said: str = "") -> dict:
    out, _ = client.communicate(said, timeout=SECONDS)
    return json.loads(out)


def is_server(process: int) -> bool:
    return "mtrl_cluster.fork_server" in psutil.Process(process).cmdline()


def test_a_fork_is_the_process_that_was_asked_for(start, script: Path, tmp_path: Path):
    process = told(start("colorsys", "one", "two words", WHAT_IT_IS_TOLD="secret"), "from standard input")
    assert is_server(process["parent"]) and process["preloaded"]
    assert process["arguments"] == ["one", "two words"] and process["name"] == "__main__"
    assert process["folder"] == str(tmp_path) and process["path"] == str(script.parent)
    assert process["variable"] == "secret" and process["said"] == "from standard input"


def test_forks_share_a_server_and_nothing_else(start):
    clients = [start("colorsys", str(number)) for number in range(8)]
    processes = [told(client) for client in clients]
    assert len({process["parent"] for process in processes}) == 1
    assert all(process["group"] == process["pid"] for process in processes)  # Ray ends a worker's whole group
    assert len({process["random"] for process in processes}) == 8
    assert [process["arguments"] for process in processes] == [[str(number)] for number in range(8)]


def test_another_environment_means_another_server(start):
    """Packages read it when they are imported; Ray's own variables are each process's own."""
    one, same = told(start("colorsys")), told(start("colorsys", RAY_JOB_ID="01"))
    other = told(start("colorsys", WHAT_IT_IS_TOLD="something else"))
    assert one["parent"] == same["parent"] != other["parent"]


def test_the_server_ends_with_the_last_raylet_that_it_served(start, raylet: subprocess.Popen):
    second = subprocess.Popen(["sleep", "600"])
    server = psutil.Process(told(start("colorsys"))["parent"])
    assert told(start("colorsys", RAY_RAYLET_PID=str(second.pid)))["parent"] == server.pid
    raylet.kill()
    raylet.wait()
    assert told(start("colorsys", RAY_RAYLET_PID=str(second.pid)))["parent"] == server.pid
    second.kill()
    second.wait()
    wait_until(lambda: not server.is_running(), SECONDS)


def test_the_server_ends_when_nobody_needs_it(start, raylet: subprocess.Popen):
    name = f"mtrl-test-{raylet.pid}"
    code = (
        "import sys; from mtrl_cluster import fork_server as server; server.IDLE_SECONDS = server.LOOK_SECONDS = 0.1; "
        f"sys.argv[1:] = ['{name}', '{raylet.pid}']; server.main()"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment(), timeout=SECONDS, check=False).returncode == 0


@pytest.mark.parametrize(
    "module",
    [
        "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
        "import sys; sys.modules['ray'] = sys",
    ],
    ids=["a thread", "Ray"],
)
def test_what_must_not_be_forked_is_started_the_ordinary_way(start, tmp_path: Path, module: str):
    (tmp_path / "unfit_to_fork.py").write_text(module)
    paths = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    client = start("unfit_to_fork", "one", PYTHONPATH=paths)
    process = told(client, "said")
    assert process["pid"] == client.pid and process["arguments"] == ["one"] and process["said"] == "said"


def test_without_a_raylet_a_process_is_started_the_ordinary_way(start):
    client = start("colorsys", "fail", RAY_RAYLET_PID="")
    assert told(client)["pid"] == client.pid and client.returncode == 3


def test_a_module_that_is_not_there_is_left_to_the_fork(start):
    process = told(start("no_such_module_anywhere,colorsys"))
    assert is_server(process["parent"]) and process["preloaded"]


def test_a_server_that_is_killed_is_replaced(start):
    first = told(start("colorsys"))["parent"]
    psutil.Process(first).kill()
    second = told(start("colorsys"))["parent"]
    assert second != first and is_server(second)


@pytest.mark.parametrize("garbage", [b"", b"\xff" * 4, b"\0\0\0\2[]", b"\0\0\0\4null", b"\0\0\0\x0e[1, 2, 3, {}]x"])
def test_what_is_no_order_harms_nobody(start, garbage: bytes):
    server = told(start("colorsys"))["parent"]
    name = psutil.Process(server).cmdline()[-2]
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(f"\0{name}")
        socket.send_fds(stranger, [garbage or b"x"], [0, 1, 2])
        stranger.shutdown(socket.SHUT_WR)
        stranger.settimeout(SECONDS)
        assert stranger.recv(1) == b""
    assert told(start("colorsys"))["parent"] == server
