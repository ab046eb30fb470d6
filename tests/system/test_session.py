"""Connecting to Ray: a cluster of one's own, one that is running, one that is not there, and what it lacks."""

import json
import os
import subprocess
import sys
import time

import pytest
import ray

from mtrl_ray.errors import ConfigurationError, EngineError
from mtrl_ray.processes.session import connected, demand, shortage
from mtrl_ray.run.recipes import load
from tests.support.processes import ROOT, environment

OWN = """
import json, os, psutil, ray, time
from mtrl_ray.processes.session import connected
from mtrl_ray.run.recipes import load
from tests.support.reach import reach
settings = load("sales", ["rollout.workers=3", "rollout.cpus=2", "learner.cpus=1.5"])
with connected(settings) as connection:
    found = ray.cluster_resources()
    print(json.dumps([connection.address, connection.dashboard, connection.shortage, found["CPU"]]))
    print(json.dumps(reach([psutil.Process(), *psutil.Process().children(recursive=True)], connection.dashboard)))
    class Holder:
        def answer(self): return True
    holder, task = ray.remote(num_cpus=found["CPU"])(Holder).remote(), ray.remote(num_cpus=0)(lambda: os.getpid())
    first = ray.get([holder.answer.remote(), task.remote()])[1]
    time.sleep(3)
    print(json.dumps(ray.get(task.remote()) == first))
print(json.dumps(ray.is_initialized()))
"""


def test_what_a_run_holds():
    overrides = ["rollout.workers=3", "rollout.cpus=2", "rollout.gpus=0.5", "learner.processes=2", "learner.cpus=1.5"]
    assert demand(load("sales", overrides)) == (9.0, 1.5)
    assert demand(load("sales", [*overrides, "rollout.spares=1", "learner.spare=true"])) == (14.0, 2.0)
    elastic = load("sales", [*overrides[1:], "rollout.workers={min: 1, max: 4}"])
    assert (demand(elastic), demand(elastic, workers=1)) == ((11.0, 2.0), (5.0, 0.5))


def test_a_ray_of_ones_own_has_as_many_cpus_as_the_run_asks_for_and_is_reached_from_here_with_a_token_alone():
    done = subprocess.run(
        [sys.executable, "-c", OWN],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (address, dashboard, lacking, cpus), reached, kept, still = (json.loads(line) for line in done.stdout.splitlines())
    assert (address, lacking, cpus, still) == ("local", None, max(os.cpu_count(), 8), False)
    assert dashboard.startswith("127.0.0.1:")
    assert reached == {"listening": ["127.0.0.1"], "without": 401, "with": 200}
    assert kept  # a task's process is the next one's, where all CPUs are taken


def test_what_a_cluster_lacks_is_one_sentence(ray_cluster):
    assert shortage(load("sales", ["rollout.workers=2", "rollout.cpus=1", "learner.cpus=1"])) is None
    lacking = shortage(load("sales", ["rollout.workers=8", "rollout.cpus=1", "learner.cpus=1"]))
    assert "asks for 9 CPUs" in lacking and "the cluster has 4" in lacking and "\n" not in lacking
    lacking = shortage(load("sales", ["rollout.cpus=0", "rollout.gpus=1"]))
    assert "asks for 1 GPUs" in lacking and "the cluster has 0" in lacking


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "nonsense", "no-such-host.invalid:6379"])
def test_a_cluster_that_does_not_answer_is_told_at_once(address):
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"no Ray cluster answers at") as raised, connected(load("sales"), address):
        pass
    assert "\n" not in str(raised.value) and address in str(raised.value) and time.monotonic() - began < 15


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_ray_that_cannot_be_started_is_one_sentence(monkeypatch, address):
    def init(**options):
        raise Exception("\nINFO head.py:337 -- Loading modules\n  OSError: [Errno 28] No space left\n")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    what = "Ray cannot be started on this machine" if address is None else "no Ray cluster answers at 'auto'"
    with pytest.raises(EngineError, match=rf"^{what}: OSError: \[Errno 28\] No space left$"):  # noqa: SIM117
        with connected(load("sales"), address):
            pass


def test_other_kinds_of_address_are_refused_with_advice(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    with pytest.raises(ConfigurationError, match=r"'ray://127.0.0.1:10001' .*mtrl submit"), connected(load("sales")):
        pass
