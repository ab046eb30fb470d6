"""How work is cut: everything that is missing, once; in exact runs the same way whatever is known and whoever is there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrl_ray.rollout.chunks import Cutter, is_exact
from mtrl_ray.rollout.lease import make_leases
from mtrl_ray.run.recipes import load

LLM = "{user: llm, llm: {base_url: 'http://127.0.0.1:1', model: x}}"


def cutter(*overrides: str) -> Cutter:
    return Cutter(load("sales", ["rollout.lease_size=4", "rollout.concurrency=8", *overrides]))


EXACT = {workers: cutter(f"rollout.workers={workers}") for workers in (1, 2, 3)}
SMALL = cutter("rollout.workers={min: 1, max: 1}")


@given(st.integers(1, 60), st.sets(st.integers(0, 59)), st.sampled_from(sorted(EXACT)), st.integers(1, 3))
def test_exact_chunks_are_the_same_whatever_is_known(count: int, known: set[int], most: int, present: int) -> None:
    leases = make_leases(0, "train", 0, range(count))
    ids = {leases[place].id for place in known if place < count}
    whole = EXACT[most].leases(leases, frozenset(), most)
    again = EXACT[most].leases(leases, ids, present)
    assert [lease for chunk in whole for lease in chunk.leases] == leases and len(whole) <= most
    assert again == [chunk for chunk in whole if any(lease.id not in ids for lease in chunk.leases)]
    assert EXACT[most].states(count, 4, present) == EXACT[most].states(count, 4, most)


@given(st.integers(1, 60), st.sets(st.integers(0, 59)), st.integers(1, 5))
def test_small_chunks_have_what_is_missing_and_nothing_else(count: int, known: set[int], present: int) -> None:
    leases = make_leases(0, "train", 0, range(count))
    missing = [lease for place, lease in enumerate(leases) if place not in known]
    chunks = SMALL.leases(leases, {lease.id for lease in leases} - {lease.id for lease in missing}, present)
    assert [lease for chunk in chunks for lease in chunk.leases] == missing
    assert all(len(chunk.leases) <= 4 for chunk in chunks)
    ranges = [chunk.states for chunk in SMALL.states(count, 2, present)]
    assert [place for start, stop in ranges for place in range(start, stop)] == list(range(count))


def test_a_worker_holds_one_chunk_of_an_exact_run():
    [one] = EXACT[1].leases(make_leases(0, "train", 0, range(20)), frozenset(), 1)
    assert (EXACT[1].in_flight, SMALL.in_flight, one.items) == (1, 3, 20)


@pytest.mark.parametrize(
    ("overrides", "exact"),
    [
        ([], True),
        (["rollout.workers={min: 1, max: 2}"], False),
        ([f"environment.options={LLM}"], False),
        (["rollout.workers={min: 2, max: 2}"], False),
    ],
    ids=["scripted", "elastic", "an LLM's users", "a range of one number"],
)
def test_runs_are_exact_where_they_can_be(overrides, exact):
    assert is_exact(load("sales", overrides)) is exact
