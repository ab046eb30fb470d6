"""`mtrl cluster local`: nodes that are there, replaced when one is lost, reached from here with a token alone, and gone after
Ctrl-C; and where on them a driver's small tasks run."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mtrl_cluster import local
from mtrl_cluster.local import MARK, Shape, autoscaling, end
from tests.support.processes import ROOT, environment, mtrl, survivors, wait_until
from tests.support.reach import reach

SMALL_TASKS = """
import sys
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from mtrl_ray.processes.session import connected
from mtrl_ray.run.recipes import load
from mtrl_ray.processes.small_tasks import small_task

@small_task()
def place(table):
    return ray.get_runtime_context().get_node_id()

with connected(load("sales", []), sys.argv[1]):
    here = ray.get_runtime_context().get_node_id()
    [other] = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - {here}
    there = NodeAffinitySchedulingStrategy(other, soft=False)
    make = ray.remote(num_cpus=0)(lambda: bytes(2**20)).options(scheduling_strategy=there)
    tables = [make.remote() for _ in range(8)]
    print([ray.get(place.remote(table)) == here for table in tables])
"""
"""Ray would rather run a task where its table is, whatever it costs the other node's idle time."""


def of_cluster(folder: Path) -> list[psutil.Process]:
    """The processes of the cluster whose command runs with this folder in its environment; `info` has their names and
    commands, for some end while one looks."""
    found = []
    for process in psutil.process_iter(["environ", "name", "cmdline"]):
        variables = process.info["environ"] or {}
        if variables.get("MTRL_TEST_FOLDER") == str(folder) and MARK in variables:
            found.append(process)
    return found


def raylets(folder: Path) -> list[psutil.Process]:
    """A node's heart each."""
    return [one for one in of_cluster(folder) if one.info["name"] == "raylet"]


def alive(process: psutil.Process) -> bool:
    """Whether it still runs."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.timeout(300)
def test_two_nodes_for_as_long_as_the_command_runs(tmp_path: Path):
    said = tmp_path / "said"
    with said.open("w") as output:
        command = [sys.executable, "-m", "mtrl_ray", "cluster", "local", "--nodes", "2"]
        variables = environment(MTRL_TEST_FOLDER=str(tmp_path))
        running = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=output)
    try:
        wait_until(lambda: "Ctrl-C ends it" in said.read_text(), 200, running)
        wait_until(lambda: len(raylets(tmp_path)) == 2, 60, running)
        address = re.search(r"--address (\S+)", said.read_text())[1]
        tasks = [sys.executable, "-c", SMALL_TASKS, address]
        done = subprocess.run(tasks, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout == f"{[True] * 8}\n", done.stderr
        [lost] = [one for one in raylets(tmp_path) if "--head" not in one.info["cmdline"]]
        lost.kill()
        wait_until(lambda: len(set(raylets(tmp_path)) - {lost}) == 2, 60, running)
        monitors = [one for one in of_cluster(tmp_path) if any("log_monitor" in part for part in one.info["cmdline"])]
        assert len(monitors) == 1, "each reads the logs of all nodes"
        dashboard = re.search(r"dashboard: +http://(\S+)", said.read_text())[1]
        started = of_cluster(tmp_path)
        assert reach(started, dashboard) == {"listening": ["127.0.0.1"], "without": 401, "with": 200}
        assert "--address 127.0.0.1:" in said.read_text()
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0
        assert not [one for one in started if alive(one)] and not of_cluster(tmp_path)
    finally:
        running.kill()
        survivors(of_cluster(tmp_path), 5)


def test_what_no_longer_carries_the_clusters_mark_ends_with_its_parent():
    command = f"{sys.executable} -c \"import subprocess; subprocess.run(['env', '-u', '{MARK}', 'sleep', '600'])\""
    parent = subprocess.Popen(command, shell=True, env=environment(**{MARK: "a-mark"}))
    try:
        wait_until(lambda: "sleep" in [one.name() for one in psutil.Process(parent.pid).children(recursive=True)], 60)
        [sleeper] = [one for one in psutil.Process(parent.pid).children(recursive=True) if one.name() == "sleep"]
        end("a-mark")
        assert not alive(sleeper)
    finally:
        parent.kill()
        parent.wait()


def test_a_process_that_cannot_be_killed_is_named_and_left(monkeypatch, caplog):
    for name, value in {"END_SECONDS": 0.1, "KILL_SECONDS": 0.1, "_quietly": lambda action: None}.items():
        monkeypatch.setattr(local, name, value)
    process = subprocess.Popen(["sleep", "600"], env=environment(**{MARK: "another-mark"}))
    try:
        end("another-mark")
        assert f"these cannot be killed: sleep ({process.pid})" in caplog.text
    finally:
        process.kill()
        process.wait()


def test_more_nodes_from_the_start_than_at_most_is_one_sentence():
    done = mtrl("cluster", "local", "--nodes", "3", "--autoscale", "2")
    assert done.returncode == 2 and done.stderr == "mtrl: --autoscale 2 is less than --nodes 3; give at least as many\n"


def test_the_autoscaler_keeps_the_nodes_of_the_start_and_adds_up_to_the_most():
    node = autoscaling(Shape(nodes=2, most=5, cpus=4, idle_seconds=30), "127.0.0.1:1")["available_node_types"]["node"]
    assert (node["min_workers"], node["max_workers"], node["resources"]["CPU"]) == (1, 4, 4)
