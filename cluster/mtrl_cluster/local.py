"""Several nodes on this machine, grown and shrunk by Ray's own autoscaler: `mtrl cluster local`.

1. The head is `ray start --head` with an autoscaling configuration whose provider (`mtrl_cluster.local_nodes`) starts a further
   raylet here where a cloud's would rent a machine. Each node has logical CPUs of its own, whatever the machine has.
2. Nothing is reachable from outside (`mtrl_cluster.loopback`); Ray's token authentication is on
   (`mtrl_cluster.authentication`).
3. Every process of the cluster carries its mark in its environment. When the cluster ends, those processes are ended,
   and no others.
"""

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mtrl_cluster.authentication import switch_on
from mtrl_cluster.loopback import HERE, confine
from mtrl_cluster.task_processes import keep
from mtrl_ray.errors import EngineError

LOG = logging.getLogger(__name__)

MARK = "MTRL_LOCAL_CLUSTER"
"""Environment variable with the cluster's identity, in each of its processes."""
OBJECT_STORE_BYTES = 200 * 2**20
"""Of each node."""
START_SECONDS = 180.0
HEALTH_CHECK_MS = 500
"""Between two of the head's questions to a node. Five that fail in a row make it dead: on one machine, where a refused
connection means that nobody is there, not after the 15 s that Ray gives a network."""
END_SECONDS = 10.0
"""For processes to end when they are asked to, before they are killed."""
KILL_SECONDS = 20.0
"""For processes to end when they are killed, before they are given up."""


@dataclass(frozen=True)
class Shape:
    """`nodes` from the start, the head among them, up to `most` when work waits; `cpus` of each; when an idle one goes."""

    nodes: int = 1
    most: int = 1
    cpus: int = 1
    idle_seconds: float = 60.0


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster: for `--address`, for a browser or a job, its identity, Ray's folder."""

    address: str
    dashboard: str
    mark: str
    folder: Path


@contextmanager
def local_cluster(shape: Shape, port: int | None = None) -> Iterator[LocalCluster]:
    """The cluster, for as long as the context lasts. `port`: of its address. Raises EngineError if it does not start."""
    switch_on()
    confine()
    keep()
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="mtrl-", dir="/tmp", ignore_cleanup_errors=True) as name:  # sockets: short
        folder = Path(name)
        cluster = LocalCluster(f"{HERE}:{port or free_port()}", f"http://{HERE}:{free_port()}", mark, folder)
        try:
            _start(cluster, shape)
            yield cluster
        finally:
            end(mark)


def processes(mark: str) -> list[psutil.Process]:
    """The cluster's processes that run now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.pid != os.getpid():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def nodes(mark: str) -> int:
    """The current number of nodes, counted by raylets."""
    return sum(_name(process) == "raylet" for process in processes(mark))


def end(mark: str) -> None:
    """End every process of the cluster; the autoscaler first, so it starts no others. Names those that cannot be killed."""
    for process in processes(mark):
        if any("monitor.py" in part for part in command_of(process)):
            _quietly(process.kill)
    known = set(processes(mark))  # waited for by name: one that is ending may have no environment left to be found by
    for process in list(known):
        with suppress(psutil.NoSuchProcess):
            known |= set(process.children(recursive=True))
    for process in known:
        _quietly(process.terminate)
    deadline = time.monotonic() + END_SECONDS
    while known := _running(known) | set(processes(mark)):
        if time.monotonic() > deadline + KILL_SECONDS:
            left = ", ".join(sorted(f"{_name(process)} ({process.pid})" for process in known))
            LOG.warning("of the local cluster these cannot be killed: %s", left)
            return
        if time.monotonic() > deadline:
            for process in known:
                _quietly(process.kill)
        psutil.wait_procs(known, timeout=0.5)


def _running(known: set[psutil.Process]) -> set[psutil.Process]:
    """The processes that still run; zombies do not count."""
    alive = set()
    for process in known:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                alive.add(process)
    return alive


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        return int(probe.getsockname()[1])


def autoscaling(shape: Shape, address: str) -> dict[str, Any]:
    """The autoscaler's configuration."""
    resources = {"CPU": shape.cpus, "object_store_memory": OBJECT_STORE_BYTES}
    return {
        "cluster_name": "mtrl-local",
        "max_workers": shape.most - 1,
        "upscaling_speed": 100,
        "idle_timeout_minutes": shape.idle_seconds / 60,
        "provider": {
            "type": "external",
            "module": "mtrl_cluster.local_nodes.LocalNodes",
            "gcs_address": address,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": shape.cpus}, "node_config": {}, "max_workers": 0},
            "node": {
                "resources": resources,
                "node_config": {},
                "min_workers": shape.nodes - 1,
                "max_workers": shape.most - 1,
            },
        },
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")},
        **{key: [] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
        **{key: [] for key in ("head_start_ray_commands", "worker_start_ray_commands")},
    }


def _start(cluster: LocalCluster, shape: Shape) -> None:
    configuration = cluster.folder / "autoscaling.json"
    configuration.write_text(json.dumps(autoscaling(shape, cluster.address)))
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        f"--node-ip-address={HERE}",
        f"--port={cluster.address.rpartition(':')[2]}",
        f"--dashboard-host={HERE}",
        f"--dashboard-port={cluster.dashboard.rpartition(':')[2]}",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
        f"--num-cpus={shape.cpus}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={cluster.folder}",
        f"--autoscaling-config={configuration}",
        "--disable-usage-stats",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", MARK: cluster.mark}
    environment.setdefault("RAY_health_check_period_ms", str(HEALTH_CHECK_MS))
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
            start_new_session=True,  # Ctrl-C is for this process, which ends them in order
        )
    except subprocess.TimeoutExpired:
        raise EngineError(f"the local cluster did not start within {START_SECONDS:.0f} s") from None
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise EngineError(f"the local cluster did not start: {said[-1][:500] if said else 'ray start said nothing'}")


def command_of(process: psutil.Process) -> list[str]:
    """The command line of a process; empty if it has ended."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _quietly(action: Any) -> None:
    try:
        action()
    except psutil.NoSuchProcess:
        return
