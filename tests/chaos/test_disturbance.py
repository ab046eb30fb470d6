"""A real run on three nodes that loses a node, an engine and its driver; and how its account is made."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.local import Shape, local_cluster
from mtrl_ray.chaos.audit import Audit, audit
from mtrl_ray.chaos.disturbance import KINDS, Kill, Schedule, Stretch, _Recovered, measure, prepared, result
from mtrl_ray.chaos.driver import State
from mtrl_ray.config import load

UNSEEN = ("node", "engine", "driver")
"""Kinds that no other test kills in a run."""


@pytest.mark.timeout(900)
def test_a_run_that_loses_a_node_an_engine_and_its_driver_loses_no_conversation(quick, tmp_path: Path):
    overrides = [*quick, "rollout.workers=2", "rollout.cpus=0.5", "learner.cpus=0.5", f"run.folder={tmp_path}"]
    settings = prepared(load("sales", [*overrides, "monitoring.live=false"]), "disturbed")
    rng, said = random.Random(0), []
    with local_cluster(Shape(nodes=3, most=3, cpus=1, idle_seconds=3600)) as cluster:
        stretch = measure(cluster, settings, 20, rng, said.append, Schedule(0.5, UNSEEN, rng, most=len(UNSEEN)))
    assert sorted(kill.kind for kill in stretch.kills) == sorted(UNSEEN), said
    found = audit(settings)
    assert found == Audit(found.leases, 0, 0, 0) and found.leases > 0, said
    assert all(kill.seconds > 0 for kill in stretch.kills) and stretch.stop_seconds < 30


def test_the_account():
    calm = Stretch(50, 500) + Stretch(50, 500)
    disturbed = Stretch(40, 300, [Kill("worker", 5, 7)], 9) + Stretch(
        60, 420, [Kill("driver", 20, 30), Kill("worker", 50, 53)], 4
    )
    assert disturbed.stop_seconds == 9 and calm.rate == 10
    told = result(calm, disturbed, Audit(720, 1, 2, 3))
    assert told == {
        "kills": {**dict.fromkeys(KINDS, 0), "worker": 2, "driver": 1, "total": 3},
        "lost": 1,
        "repeated": 2,
        "zero_filled": 3,
        "throughput_ratio": pytest.approx(0.8),
        "recovery_seconds": {"median": 3, "max": 10},
    }


def test_kinds_take_turns():
    schedule = Schedule(20, KINDS, random.Random(1))
    drawn = [schedule.kind() for _ in range(3 * len(KINDS))]
    rounds = [drawn[start : start + len(KINDS)] for start in range(0, len(drawn), len(KINDS))]
    assert all(set(one) == set(KINDS) for one in rounds) and rounds[0] != rounds[1]

    for _ in range(100):
        pause = 0
        while not schedule.due(1.0):
            pause += 1
        schedule.kind()
        assert 14 <= pause <= 25


def test_when_a_run_has_recovered():
    """Whole again, and one lease taken since the damage was repaired."""
    calm = State(pid=1, iteration=4, recoveries=0, wanted=2, ready=2, leases=10, joined=5.0, nodes=[], buffer=70)
    lost = replace(calm, buffer=0, leases=11)
    back = replace(calm, buffer=71, leases=12)
    recovered = _Recovered("buffer", 6.0, calm)
    assert [recovered(state) for state in (calm, lost, back, replace(back, leases=13))] == [False, False, False, True]
    mended = _Recovered("learner", 6.0, calm)
    repaired = replace(calm, recoveries=1)
    assert [mended(state) for state in (lost, back, repaired, replace(repaired, leases=11))] == [False] * 3 + [True]
    joined = _Recovered("worker", 6.0, calm)
    states = (calm, replace(calm, ready=1), replace(calm, joined=7.0, ready=1), replace(calm, joined=7.0))
    assert [joined(state) for state in states] == [False, False, False, True]
    resumed = _Recovered("driver", 6.0, calm)
    assert not resumed(calm) and not resumed(replace(calm, pid=2, leases=0)) and resumed(replace(calm, pid=2, leases=1))
