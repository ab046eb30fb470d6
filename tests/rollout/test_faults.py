"""What the fleet does when an engine, a user or an environment fails: real workers, real restarts."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from mtrl_ray.dialogue.conversation import from_table
from mtrl_ray.errors import DataError, EngineError
from mtrl_ray.rollout import patience
from mtrl_ray.rollout.fleet import Fleet
from mtrl_ray.rollout.lease import make_leases
from mtrl_ray.run.recipes import load
from mtrl_ray.system.collection import evaluation_rollouts
from mtrl_ray.weights.store import read_files, start_store
from tests.envs.test_llm import endpoint  # noqa: F401


@pytest.fixture
def fleet_of(ray_cluster: None, blank_sales: Path, quick: list[str]):
    """Makes a fleet of one worker, and ends it."""
    made: list[Fleet] = []
    store = start_store()
    ray.get(store.keep_files.remote(read_files(str(blank_sales))))

    def make(*overrides: str, say: Callable[[str], object] = print) -> Fleet:
        settings = load(
            "sales",
            [*quick, "rollout.lease_size=6", "rollout.concurrency=6", "rollout.workers={min: 1, max: 1}", *overrides],
        )
        made.append(Fleet(settings, str(blank_sales), store, say))
        return made[-1]

    yield make
    for fleet in made:
        fleet.stop()
    ray.kill(store)


def held(fleet: Fleet, contexts: int = 18) -> set[str]:
    """Ids of the conversations that the fleet holds."""
    results = fleet.rollout(make_leases(0, "train", 0, range(contexts)), version=0)
    return {done.id for result in results for done in from_table(ray.get(result.table[0]))}


def ids(contexts: int) -> set[str]:
    return {lease.id for lease in make_leases(0, "train", 0, range(contexts))}


def test_an_engine_that_fails_is_replaced_and_its_leases_are_held_by_the_next(fleet_of, tmp_path):
    said: list[str] = []
    trouble = f"environment.options={{trouble: engine, marker: {tmp_path / 'failed'}}}"
    fleet = fleet_of(trouble, "rollout.retries=1", say=said.append)
    first = fleet.wait_ready()[0]["pid"]
    assert held(fleet) == ids(18)
    assert (tmp_path / "failed").exists() and fleet.wait_ready()[0]["pid"] != first
    assert fleet.statistics.deaths == 1 and fleet.statistics.dropped == 0
    assert any("no memory left" in cause for cause in fleet.statistics.causes)
    assert held(fleet) == ids(18)
    causes = [f"rollout workers: {count} x {cause}" for cause, count in fleet.statistics.causes.items()]
    assert [one for one in said if not one.startswith("waiting")] == causes, "each once"


def test_an_engine_that_stalls_is_replaced_and_what_was_finished_is_kept(fleet_of, tmp_path):
    fleet = fleet_of(
        f"environment.options={{trouble: stall, marker: {tmp_path / 'stalled'}}}", "rollout.lease_seconds=2"
    )
    first = fleet.wait_ready()[0]["pid"]
    results = list(fleet.rollout(make_leases(0, "train", 0, range(18)), version=0))
    found = [done.id for result in results for done in from_table(ray.get(result.table[0]))]
    assert set(found) == ids(18) and len(found) == 18, "none is rolled out twice"
    assert sum(result.report.finished for result in results if result.report.error) > 0
    assert fleet.statistics.overdue == 1 and fleet.statistics.dropped == fleet.statistics.deaths == 0
    assert any("worker 0 made no progress for 2 s" in cause for cause in fleet.statistics.causes)
    assert fleet.wait_ready()[0]["pid"] != first


def test_a_user_that_never_answers_fails_its_conversation_and_no_other(fleet_of, tmp_path):
    fleet = fleet_of(f"environment.options={{trouble: hang, marker: {tmp_path / 'hung'}}}", "rollout.user_seconds=2")
    first = fleet.wait_ready()[0]["pid"]
    assert len(held(fleet)) == 17 and fleet.statistics.dropped == 1, (
        "a scripted user would not answer the next time either"
    )
    [cause] = fleet.statistics.causes
    assert re.fullmatch(r"Late: letters: the user of conversation train-\S+ did not answer within 2 s .*", cause)
    assert fleet.statistics.overdue == fleet.statistics.deaths == 0 and fleet.wait_ready()[0]["pid"] == first


def test_slow_users_are_waited_for_however_many_they_are(fleet_of, endpoint):  # noqa: F811
    """128 conversations take several times `lease_seconds` if 16 users are asked at a time."""

    def slowly(body: dict) -> tuple[int, str]:
        time.sleep(0.5)
        return 200, "Bye. [END: left]" if len(body["messages"]) > 4 else "Hello."

    endpoint.answer = slowly
    llm = f"{{base_url: '{endpoint.url}', model: person, timeout: 20}}"
    fleet = fleet_of(
        "environment.name=sales",
        f"environment.options={{user: llm, llm: {llm}}}",
        "rollout.lease_size=32",
        "rollout.concurrency=128",
        "rollout.lease_seconds=3",
        "rollout.retries=0",
    )
    fleet.wait_ready()
    assert len(held(fleet, 128)) == 128 and fleet.statistics.overdue == 0


def test_a_worker_whose_process_stands_still_is_replaced(fleet_of):
    fleet = fleet_of("rollout.lease_seconds=3")
    first = fleet.wait_ready()[0]["pid"]
    os.kill(first, signal.SIGSTOP)
    assert held(fleet) == ids(18)
    assert fleet.statistics.overdue >= 1 and fleet.statistics.dropped == 0
    assert fleet.wait_ready()[0]["pid"] != first


def test_workers_that_find_no_room_are_missed_in_words_and_then_no_longer_waited_for(fleet_of, monkeypatch):
    monkeypatch.setattr(patience, "SAY_SECONDS", 0.5)
    monkeypatch.setattr(patience, "START_SECONDS", 3.0)
    said: list[str] = []
    fleet = fleet_of("rollout.cpus=100", say=said.append)
    missing = (
        r"rollout workers: 0 of 1 are ready \(1 starting\); each takes 100 CPUs and 0 GPUs; the cluster has 4 CPUs"
    )
    for wait in (lambda: held(fleet), fleet.wait_ready):
        said.clear()
        with pytest.raises(EngineError, match=f"waited 3 s for {missing}"):
            wait()
        assert len(said) == 1 and re.match(f"waiting for {missing}", said[0]), "once"


def test_work_that_is_abandoned_makes_room_for_the_same_work(fleet_of):
    fleet = fleet_of()
    pid = fleet.wait_ready()[0]["pid"]
    results = fleet.rollout(make_leases(0, "train", 0, range(18)), version=0)
    next(results)
    results.close()
    fleet.abandon()
    assert held(fleet) == ids(18), "under the identities of what was in flight"
    assert fleet.wait_ready()[0]["pid"] == pid and fleet.statistics.deaths == 0


def test_conversations_whose_user_fails_are_tried_again_then_dropped_and_counted_by_cause(fleet_of):
    said: list[str] = []
    fleet = fleet_of("environment.options={trouble: data}", "rollout.retries=2", say=said.append)
    fleet.wait_ready()
    failing = {lease.id for lease in make_leases(0, "train", 0, range(0, 18, 3))}
    assert held(fleet) == ids(18) - failing
    assert fleet.statistics.deaths == 0 and fleet.statistics.dropped == len(failing)
    assert fleet.statistics.causes == {"DataError: the reader's file is torn": 3 * len(failing)}
    assert not said, "it is no fault of the workers"
    with pytest.raises(
        DataError, match=r"none of the 1 chunks .*the reader's file is torn.* failed is train-000000-0000000"
    ):
        held(fleet, 1)


def test_conversations_evaluation_rollouts_are_too_few_to_go_on_with_where_too_many_fail(fleet_of):
    fleet = fleet_of("environment.options={trouble: data}", "rollout.retries=0")
    leases = make_leases(0, "train", 0, range(18))
    rollout = load("sales", ["rollout.retries=0"]).rollout
    table, causes = evaluation_rollouts(fleet, leases, 0, rollout)
    assert table["id"].to_pylist() == sorted(ids(18) - {lease.id for lease in leases[::3]})
    assert causes == "6 x DataError: the reader's file is torn"
    few = rollout.model_copy(update={"data_errors": 0.3})
    with pytest.raises(DataError, match=r"6 of 18 conversations failed 1 times each .*: the reader's file is torn"):
        evaluation_rollouts(fleet, leases, 0, few)
