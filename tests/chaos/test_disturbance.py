"""A real run on three nodes that loses a node, an engine and its driver; and how its account is made."""

import random
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from mtrl_cluster.local import Shape, local_cluster
from mtrl_ray.chaos import disturbance
from mtrl_ray.chaos.audit import Audit, audit
from mtrl_ray.chaos.disturbance import KINDS, Kill, Pace, Schedule, Stretch, _Recovered, measure, prepared, result
from mtrl_ray.chaos.driver import State
from mtrl_ray.run.recipes import load

UNSEEN = ("node", "engine", "driver")
"""Kinds that no other test kills in a run."""


@pytest.mark.timeout(900)
def test_a_run_that_loses_a_node_an_engine_and_its_driver_loses_no_conversation(quick, tmp_path: Path):
    overrides = [
        *quick,
        "rollout.workers=2",
        "rollout.spares=1",
        "learner.spare=true",
        "rollout.cpus=0.5",
        "learner.cpus=0.5",
        f"run.folder={tmp_path}",
    ]
    settings = prepared(load("sales", overrides), "disturbed")
    rng, said = random.Random(0), []
    with local_cluster(Shape(nodes=3, most=3, cpus=1, idle_seconds=3600)) as cluster:
        kills = Schedule(0.5, UNSEEN, rng, most=len(UNSEEN))
        stretch = measure(cluster, settings, lambda _, seconds: seconds > 1200, rng, said.append, kills)
    assert sorted(kill.kind for kill in stretch.kills) == sorted(UNSEEN), said
    found = audit(settings)
    assert found == Audit(found.leases, 0, 0, 0) and found.leases > 0, said
    assert all(kill.seconds > 0 for kill in stretch.kills) and stretch.stop_seconds < 30
    numbers, ends = zip(*sorted(stretch.ends.items()), strict=True)
    assert len(numbers) >= 2 and ends[0] == 0 and list(ends) == sorted(ends)


def test_the_account():
    """Of the iterations that both runs did, whoever did more."""
    pace = Pace.of(Stretch({3: 0, 4: 2, 5: 5, 6: 9}), Stretch({2: 0, 3: 4, 5: 10, 6: 15, 7: 90}))
    assert pace == Pace(3, 9, 11)
    assert Pace.of(Stretch({3: 0, 4: 2}), Stretch({5: 0, 6: 7})) == Pace()
    assert str(pace + Pace(1, 1, 3)) == "4 iterations, disturbed 3.50 s each, undisturbed 2.50 s"
    kills = [Kill("worker", 5, 7), Kill("driver", 20, 30), Kill("worker", 50, 53)]
    assert result(pace + Pace(1, 1, 1.5), kills, Audit(720, 1, 2, 3)) == {
        "kills": {**dict.fromkeys(KINDS, 0), "worker": 2, "driver": 1, "total": 3},
        "leases": 720,
        "lost": 1,
        "repeated": 2,
        "zero_filled": 3,
        "iterations": 4,
        "throughput_ratio": pytest.approx(0.8),
        "recovery_seconds": {"median": 3, "max": 10},
    }
    assert result(Pace(), [], Audit(0, 0, 0, 0))["throughput_ratio"] is None


def test_the_undisturbed_run_does_the_iterations_of_the_disturbed_one(monkeypatch: pytest.MonkeyPatch):
    """In turns, and only what both did is compared."""
    measured = []

    def measure(cluster, run, enough, rng, say, schedule=None):
        pace, first = (2.0, 10 * len(measured)) if schedule else (1.0, measured[-1][1] - 1)
        ends = {first: 0.0}
        while not enough(max(ends), max(ends.values())) and len(ends) < 1000:
            ends[max(ends) + 1] = max(ends.values()) + pace
        measured.append((run, first, max(ends), ends[max(ends)]))
        return Stretch(ends, [Kill("node", 1, 3)] if schedule else [], 5.0)

    monkeypatch.setattr(disturbance, "measure", measure)
    monkeypatch.setattr(disturbance, "local_cluster", lambda shape: nullcontext())
    monkeypatch.setattr(disturbance, "prepared", lambda settings, name: name)
    monkeypatch.setattr(disturbance, "audit", lambda run: Audit(100, 0, 0, 0))
    monkeypatch.setattr(disturbance, "TURN_MINUTES", 1.0)
    found = disturbance.disturb(load("sales"), 2, 20, 0, lambda text: None)
    assert measured == [
        ("disturbed", 0, 30, 60.0),
        ("undisturbed", -1, 30, 31.0),
        ("disturbed", 20, 50, 60.0),
        ("undisturbed", 19, 50, 31.0),
    ]
    assert (found["iterations"], found["throughput_ratio"], found["kills"]["node"]) == (60, 0.5, 2)


def test_kinds_take_turns():
    schedule = Schedule(20, KINDS, random.Random(1))
    drawn = [schedule.kind() for _ in range(3 * len(KINDS))]
    rounds = [drawn[start : start + len(KINDS)] for start in range(0, len(drawn), len(KINDS))]
    assert all(set(one) == set(KINDS) for one in rounds) and rounds[0] != rounds[1]


def test_kills_come_every_20_seconds_however_long_a_recovery_takes():
    schedule, now = Schedule(20, KINDS, random.Random(1)), 500.0
    schedule.resume(now)
    for recovery in [0, 12] * 50:
        while not schedule.due(now):
            now += 1
        killed = now
        schedule.kind()
        now += recovery
        while not schedule.due(now):
            now += 1
        assert 15 <= now - killed <= 26
        schedule.kind()
    schedule.resume(now + 60)
    assert not schedule.due(now + 60 + 14) and schedule.due(now + 60 + 26), "what passed before is not counted"


def test_when_a_run_has_recovered():
    """Nothing is missing, and one lease was taken since."""
    calm = State(
        pid=1,
        iteration=4,
        leases=10,
        missing=0,
        workers=[5, 6, 7],
        learners=[8],
        buffers=[9],
        spare=[7],
        nodes={"a": [6, 8]},
    )

    def verdicts(killed: set[int], *states: State) -> list[bool]:
        recovered = _Recovered(killed)
        return [recovered(state) for state in states]

    at_work, less = replace(calm, leases=11), replace(calm, workers=[6, 7], missing=1, leases=11)
    joined = replace(calm, workers=[6, 7, 15], leases=12)
    assert verdicts({5}, calm, at_work, less, joined, joined) == [False] * 5
    assert verdicts({5}, calm, less, joined, replace(joined, leases=13)) == [False] * 3 + [True]
    assert verdicts({5}, joined, replace(less, leases=13), replace(joined, leases=14)) == [False] * 3, (
        "it lost one more"
    )
    half = replace(calm, workers=[5, 7, 16], learners=[], missing=1, leases=11)
    repaired = replace(half, learners=[18], missing=0)
    assert verdicts({6, 8}, calm, half, repaired, replace(repaired, leases=12)) == [False] * 3 + [True]
    away = replace(calm, buffers=[], missing=1, leases=11)
    assert verdicts({9}, calm, away, replace(calm, buffers=[19], leases=12)) == [False] * 3
    resumed = replace(calm, pid=2, workers=[], learners=[18], buffers=[19], missing=3, leases=0)
    begun = replace(resumed, workers=[15, 16, 17], missing=0, leases=2)
    assert verdicts({1}, calm, resumed, begun, replace(begun, leases=3)) == [False] * 3 + [True]
