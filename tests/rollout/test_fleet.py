"""The fleet on a real cluster: real vLLM workers, shared work, kills, failures by cause."""

import contextlib
import os
import signal
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import ray
from ray.exceptions import RayActorError
from transformers import LlamaForCausalLM

from mtrl_ray.dialogue.conversation import from_table
from mtrl_ray.dialogue.responses import RESPONSES
from mtrl_ray.errors import EngineError
from mtrl_ray.rollout.fleet import Fleet
from mtrl_ray.rollout.lease import make_leases
from mtrl_ray.settings.tree import Settings, WorkerRange
from mtrl_ray.weights.packed import pack
from mtrl_ray.weights.store import materialise, read_files, start_store
from tests.rollout.conftest import logprobs, shaken
from tests.support.processes import wait_until


@pytest.fixture(scope="module")
def settings(sales_settings: Settings) -> Settings:
    """Two workers with small chunks."""
    rollout = sales_settings.rollout.model_copy(
        update={
            "workers": WorkerRange(min=2, max=2),
            "concurrency": 16,
            "lease_size": 8,
            "response_tokens": 12,
            "cpus": 0.5,
        }
    )
    return sales_settings.model_copy(update={"rollout": rollout})


@pytest.fixture(scope="module")
def store(ray_cluster: None, blank_sales: Path):
    """A weight store that knows the model's files."""
    store = start_store()
    ray.get(store.keep_files.remote(read_files(str(blank_sales))))
    yield store
    ray.kill(store)


@pytest.fixture(scope="module")
def fleet(settings: Settings, store, blank_sales: Path):
    """Two workers that are ready."""
    fleet = Fleet(settings, str(blank_sales), store)
    assert [answer["engine"] for answer in fleet.wait_ready()] == ["vllm", "vllm"]
    yield fleet
    fleet.stop()


@pytest.fixture(scope="module")
def newest(store, blank_sales: Path) -> LlamaForCausalLM:
    """The model that is published as version 4."""
    model = shaken(LlamaForCausalLM.from_pretrained(blank_sales).eval(), 3)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    ray.get(store.publish.remote(4, [ray.put(pack(weights, 4))]))
    return model


def collect(results) -> dict[str, object]:
    """All conversations of an iterator of results, by id."""
    tables = [ray.get(result.table[0]) for result in results]
    return {done.id: done for table in tables for done in from_table(table)}


def test_workers_are_forks_of_one_process_that_has_their_packages(fleet):
    parents = {psutil.Process(answer["pid"]).parent() for answer in fleet.wait_ready()}
    assert len(parents) == 1 and "mtrl_cluster.fork_server" in parents.pop().cmdline()


def test_two_workers_share_the_leases_and_give_what_one_would(fleet, settings, store, blank_sales):
    leases = make_leases(0, "train", 0, range(48))
    results = list(fleet.rollout(leases, version=0))
    assert {result.report.worker for result in results} == {0, 1}
    held = collect(results)
    assert set(held) == {lease.id for lease in leases}
    again = collect(fleet.rollout(leases, version=0))
    said = {name: [(turn.role, turn.text, turn.tokens) for turn in done.turns] for name, done in held.items()}
    assert said == {name: [(turn.role, turn.text, turn.tokens) for turn in done.turns] for name, done in again.items()}


def test_a_killed_workers_leases_are_held_by_the_others_and_it_comes_back(fleet):
    victim = fleet.wait_ready()[0]["pid"]
    leases = make_leases(0, "train", 1, range(200))
    held: dict[str, object] = {}
    for number, result in enumerate(fleet.rollout(leases, version=0)):
        if number == 1:
            os.kill(victim, signal.SIGKILL)
        held |= collect([result])
    assert set(held) == {lease.id for lease in leases}
    assert fleet.statistics.deaths == 1 and fleet.statistics.dropped == 0
    assert victim not in {answer["pid"] for answer in fleet.wait_ready()}


def test_one_that_was_lost_while_it_had_nothing_to_do_is_counted_when_it_works_again(fleet):
    """Nobody called it when it died, so no call fails."""
    lost, deaths = fleet.wait_ready()[0], fleet.statistics.deaths
    [member] = [one for one in fleet.pool.ready() if one.number == lost["worker"]]
    os.kill(lost["pid"], signal.SIGKILL)

    def is_back() -> bool:
        with contextlib.suppress(RayActorError):
            return ray.get(member.actor.ready.remote())["pid"] != lost["pid"]
        return False

    wait_until(is_back, 120)
    held = collect(fleet.rollout(make_leases(0, "train", 5, range(16)), version=0))
    assert len(held) == 16 and fleet.statistics.deaths == deaths + 1
    fleet.wait_ready()
    assert member.pid != lost["pid"] and member.up > lost["up"]


def test_workers_pull_the_version_they_are_asked_for(fleet, newest):
    held = collect(fleet.rollout(make_leases(0, "train", 2, range(24)), version=4))
    for done in list(held.values())[:6]:
        for turn in done.agent_turns:
            said = done.turns[turn]
            assert set(said.versions) == {4}
            expected = logprobs(newest, done.history(turn), said.tokens)
            assert max(abs(a - b) for a, b in zip(expected.tolist(), said.logprobs, strict=True)) < 1e-5


def test_weights_that_nobody_published_are_an_error_with_its_cause(fleet, newest):
    with pytest.raises(EngineError, match=r"version 99 were requested, but the newest published version is 4"):
        list(fleet.rollout(make_leases(0, "train", 3, range(4)), version=99))


def test_responses_on_logged_states(fleet, newest):
    held = collect(fleet.rollout(make_leases(0, "train", 4, range(6)), version=4))
    rows = [(done.id, turn, done.history(turn)) for done in held.values() for turn in done.agent_turns]
    names = ("conversation_id", "turn", "tokens")
    states = pa.table({name: [row[place] for row in rows] for place, name in enumerate(names)})
    results = list(fleet.respond(ray.put(states), len(rows), samples=3, seed=1, version=4))
    table = pa.concat_tables(ray.get([result.table[0] for result in results]))
    assert table.schema.names == RESPONSES.names and table.num_rows == 3 * len(rows)
    histories = {row[:2]: row[2] for row in rows}
    asked = {(row["conversation_id"], row["turn"], row["sample"]) for row in table.to_pylist()}
    assert asked == {(*key, sample) for key in histories for sample in range(3)}
    for row in table.slice(0, 5).to_pylist():
        expected = logprobs(newest, histories[row["conversation_id"], row["turn"]], row["tokens"])
        assert max(abs(a - b) for a, b in zip(expected.tolist(), row["logprobs"], strict=True)) < 1e-5


def test_a_model_travels_to_a_node_that_does_not_see_the_drivers_disk(blank_sales: Path):
    files = read_files(str(blank_sales))
    assert materialise(str(blank_sales), files) == str(blank_sales)
    elsewhere = Path(materialise("/not/on/this/node", files))
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == files
