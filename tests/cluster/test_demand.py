"""The policy that follows demand: what it asks for under steady, growing, shrinking and noisy loads."""

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from mtrl_cluster.demand import DOWN, UP, Demand, LeastSeconds, Load, answer, waited


def load(workers: int, work: float, learner: float, chunks: int = 100, overlapped: float = 0.0, **more: float) -> Load:
    """A run whose rollouts need `work` worker-seconds alone and `overlapped` beside the learner's `learner` seconds."""
    collect, beside = work / workers, overlapped / workers
    rest = max(beside - learner, 0.0)
    return Load(workers, collect + max(learner, beside), collect + beside, collect + rest, chunks, **more)


def follow(policy: Demand, workers: int, iterations: int, **kind: float) -> list[int]:
    """The number of workers after each iteration, every wish granted at once."""
    seen = []
    for _ in range(iterations):
        workers = policy.wanted(load(workers, **kind), workers)
        seen.append(workers)
    return seen


def test_a_learner_that_waits_gets_more_workers_until_one_more_is_not_worth_it():
    seen = follow(Demand(1, 16), 1, 8, work=90.0, learner=10.0)
    settled = seen[-1]
    assert seen[: UP - 1] == [1] * (UP - 1) and 4 <= settled < 16
    gained = [load(n, 90.0, 10.0).seconds - load(n + 1, 90.0, 10.0).seconds for n in (settled - 1, settled)]
    assert gained[0] >= 0.1 * load(settled - 1, 90.0, 10.0).seconds
    assert gained[1] < 0.1 * load(settled, 90.0, 10.0).seconds


def test_what_costs_every_call_the_same_is_no_demand():
    assert follow(Demand(1, 8), 1, 6, work=0.9, learner=0.1)[-1] == 1
    assert follow(Demand(1, 8), 3, 9, work=0.9, learner=0.1)[-1] == 1
    busy = {"work": 4.0, "learner": 0.1}  # on a machine where each call takes long
    assert follow(Demand(1, 8), 2, 9, **busy)[-1] == 2
    assert follow(Demand(1, 8, LeastSeconds(scale_up=3.0, scale_down=2.5)), 2, 9, **busy)[-1] == 1


def test_rollouts_that_wait_for_the_learner_are_let_go():
    seen = follow(Demand(1, 8), 8, 12, work=0.4, learner=20.0)
    assert seen[: DOWN - 1] == [8] * (DOWN - 1) and seen[-1] == 1


def test_time_beside_the_learner_is_worth_keeping_a_worker_but_not_asking_for_one():
    assert answer(load(2, work=0.0, learner=10.0, overlapped=8.0)) == 2
    assert answer(load(2, work=0.0, learner=10.0, overlapped=40.0)) > 2


def test_bounds_and_the_work_at_hand_limit_what_is_asked_for():
    assert follow(Demand(2, 3), 2, 6, work=100.0, learner=1.0)[-1] == 3
    assert follow(Demand(2, 3), 3, 9, work=0.01, learner=10.0)[-1] == 2
    assert follow(Demand(1, 50), 1, 6, work=100.0, learner=1.0, chunks=5)[-1] == 5
    assert follow(Demand(1, 50), 9, 6, work=100.0, learner=1.0, chunks=5)[-1] == 5


def test_one_iteration_is_no_trend():
    policy = Demand(1, 8)
    busy, calm = load(2, work=40.0, learner=1.0), load(2, work=2.0, learner=10.0)
    assert [policy.wanted(one, 2) for one in (busy, calm, busy, calm)] == [2, 2, 2, 2]


def test_iterations_with_another_number_of_workers_are_forgotten():
    policy = Demand(1, 8)
    assert policy.wanted(load(1, work=40.0, learner=1.0), 1) == 1
    assert policy.wanted(load(2, work=40.0, learner=1.0), 2) == 2
    assert policy.wanted(load(2, work=40.0, learner=1.0), 2) > 2


def test_what_was_asked_for_and_has_not_come_yet_is_neither_asked_for_twice_nor_taken_back():
    policy = Demand(1, 8)
    busy, calm = load(1, work=30.0, learner=10.0), load(1, work=0.1, learner=9.0)
    wanted = [policy.wanted(busy, 1), policy.wanted(busy, 1)]
    assert wanted[0] == 1 < wanted[1] < 8
    assert [policy.wanted(busy, wanted[1]) for _ in range(5)] == [wanted[1]] * 5
    assert [policy.wanted(calm, wanted[1]) for _ in range(DOWN)] == [wanted[1]] * (DOWN - 1) + [1]


@given(
    workers=st.integers(1, 40),
    work=st.floats(0, 1000),
    learner=st.floats(0.01, 1000),
    overlapped=st.floats(0, 1000),
    chunks=st.integers(0, 64),
)
def test_a_steady_load_is_answered_within_bounds_and_never_flaps(workers, work, learner, overlapped, chunks):
    kind = {"work": work, "learner": learner, "overlapped": overlapped, "chunks": chunks}
    seen = follow(Demand(1, 40), workers, 60, **kind)
    assert all(1 <= one <= 40 for one in seen)
    assert len(set(seen[30:])) == 1
    turns = [b - a for a, b in itertools.pairwise(seen) if b != a]
    assert all(turn < 0 for turn in turns) or all(turn > 0 for turn in turns)


@given(seed=st.integers(0, 10_000))
def test_noise_of_a_tenth_does_not_make_a_settled_fleet_flap(seed):
    rng, policy = random.Random(seed), Demand(1, 16)
    workers, changes = 6, 0
    for _ in range(40):
        noisy = load(workers, work=90.0 * rng.uniform(0.95, 1.05), learner=10.0 * rng.uniform(0.95, 1.05))
        wanted = policy.wanted(noisy, workers)
        changes += wanted != workers
        workers = wanted
    assert changes <= 2


def test_seconds_of_waiting():
    assert waited(10.0, 4.0, 6.0) == 4.0
    assert waited(10.0, 8.0, 6.0) == 4.0
    assert waited(10.0, 8.0, 12.0) == 0.0
    assert waited(10.0, 8.0, 0.0) == 8.0
