"""The replay buffer: every conversation once, bounds kept, answers that do not depend on arrival."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from mtrl_ray.dialogue.conversation import SCHEMA, from_table, to_table
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.replay import memory
from mtrl_ray.replay.buffer import Appended, ReplayBuffer
from mtrl_ray.replay.journal import Journal
from tests.replay.making import batch, conversation, dropped, ids, ref

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_window_is_the_newest_iterations_as_they_were(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    assert buffer.window(3).num_rows == 0
    assert buffer.window(3).schema.equals(SCHEMA)
    batches = [batch(iteration, turns=iteration + 1) for iteration in range(4)]
    for conversations in batches:
        assert buffer.append([ref(conversations)]) == Appended(added=4, duplicates=0)
    assert from_table(buffer.window(1)) == batches[3]
    assert from_table(buffer.window(2)) == batches[2] + batches[3]
    assert buffer.window(99).num_rows == 16
    assert from_table(Journal(tmp_path).read(2)) == batches[2]


def test_the_earlier_ones_of_a_window(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    assert buffer.earlier(3) is None
    batches = [batch(iteration) for iteration in range(4)]
    for conversations in batches:
        buffer.append([ref(conversations)])
    assert from_table(buffer.earlier(3)) == batches[1] + batches[2]
    assert buffer.earlier(1) is None


def test_a_conversation_counts_once_by_id(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    first, second = batch(0, 3), batch(0, 5)
    assert buffer.append([ref(first), ref(first[:1])]) == Appended(added=3, duplicates=1)
    assert buffer.append([ref(second)]) == Appended(added=2, duplicates=3)
    assert buffer.append([ref(second)]) == Appended(added=0, duplicates=5)
    assert from_table(buffer.window(1)) == second
    assert Journal(tmp_path).position.rows == 5
    assert buffer.statistics()["duplicates"] == 9


def test_a_dropped_conversation_still_counts_once(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path, max_conversations=4)
    buffer.append([ref(batch(0))])
    buffer.append([ref(batch(1))])
    assert buffer.append([ref(batch(0))]) == Appended(added=0, duplicates=4)
    assert ids(buffer.window(9)) == [one.id for one in batch(1)]


def test_answers_do_not_depend_on_the_order_of_arrival(tmp_path: Path) -> None:
    conversations = [one for iteration in range(3) for one in batch(iteration, 5)]
    buffers = []
    for order in (0, 1):
        buffer = ReplayBuffer(tmp_path / str(order), max_conversations=11)
        for index in np.random.default_rng(order).permutation(len(conversations)):
            buffer.append([ref([conversations[index]])])
        buffers.append(buffer)
    one, two = buffers
    assert one.window(2).equals(two.window(2))
    assert one.states(6, seed=3).equals(two.states(6, seed=3))
    assert one.states(9, seed=3).equals(two.states(9, seed=3))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"score": 1.5}, "score is 1.5"),
        ({"score": float("nan")}, "score is nan"),
        ({"logprobs": [0.0]}, "1 log-probabilities"),
        ({"versions": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}, "10 versions"),
        ({"reward": float("inf")}, "not finite"),
        ({"user_logprobs": True}, "turn 1 \\(user\\)"),
        ({"role": "narrator"}, "narrator"),
        ({"stop": "bored"}, "bored"),
        ({"metrics": "{"}, "cannot be read"),
        ({"tokens": None}, "missing"),
    ],
)
def test_an_invalid_conversation_is_refused_with_a_sentence(tmp_path: Path, change: dict, sentence: str) -> None:
    good, bad = batch(0, 2), conversation("bad")
    row = to_table([bad]).to_pylist()[0]
    agent, user = row["turns"][2], row["turns"][1]
    for name, value in change.items():
        if name == "user_logprobs":
            user["logprobs"] = [0.0] * len(user["tokens"])
        elif name == "tokens":
            agent["tokens"][0] = None
        elif name in agent:
            agent[name] = value
        else:
            row[name] = value
    buffer = ReplayBuffer(tmp_path)
    bad_table = pa.Table.from_pylist([row], schema=SCHEMA)
    appended = buffer.append([ray.put(pa.concat_tables([to_table(good), bad_table])), ray.put("no table")])
    assert appended.added == 2
    assert len(appended.refused) == 2
    assert "str was given" in appended.refused[0]
    assert "'bad'" in appended.refused[1]
    assert re.search(sentence, appended.refused[1])
    assert from_table(buffer.window(1)) == good
    assert Journal(tmp_path).ids() == [one.id for one in good]
    assert buffer.statistics()["refused"] == 2


def test_take_goes_to_the_journal_for_what_memory_dropped(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path, max_conversations=4)
    batches = [batch(0), batch(1)]
    for conversations in batches:
        buffer.append([ref(conversations)])
    wanted = [batches[1][2], batches[0][3], batches[1][0], batches[0][3]]
    assert from_table(buffer.take([one.id for one in wanted])) == wanted
    with pytest.raises(DataError, match="1 of the conversations asked for were never kept, 'nobody' first"):
        buffer.take(["nobody", wanted[0].id])


def test_the_oldest_are_dropped_and_counted(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path, max_conversations=6)
    buffer.append([ref(batch(1))])
    buffer.append([ref(batch(0))])
    assert ids(buffer.window(9)) == ["run/0/2", "run/0/3", *(one.id for one in batch(1))]
    assert from_table(buffer.window(9)) == batch(0)[2:] + batch(1)
    assert dropped(buffer) == {"conversations": 2}
    assert len(Journal(tmp_path).ids()) == 8


def test_the_byte_bound_holds_and_gives_bytes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SEGMENT_BYTES", 2000)
    bound = 9000
    buffer = ReplayBuffer(tmp_path, max_bytes=bound)
    for iteration in range(12):
        buffer.append([ref(batch(iteration, 3, turns=1 + iteration % 3))])
        assert 0 < buffer.statistics()["bytes"] <= bound
    statistics = buffer.statistics()
    kept = ids(buffer.window(99))
    assert kept == Journal(tmp_path).ids()[-len(kept) :]
    assert dropped(buffer) == {"bytes": 36 - len(kept)}
    assert statistics["objects"] > 1
    held = sum(ray.get(segment.ref).nbytes for segment in buffer._memory._segments.values())
    assert held == pytest.approx(statistics["bytes"], rel=0.02)
    expected = {one.id: one for iteration in range(12) for one in batch(iteration, 3, turns=1 + iteration % 3)}
    assert all(one == expected[one.id] for one in from_table(buffer.window(99)))


def test_stale_conversations_are_dropped_when_the_version_advances(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path, max_staleness=2)
    for iteration in range(3):
        buffer.append([ref(batch(iteration, 2))])
    logged = conversation("logged", 0)
    for turn in logged.turns:
        turn.versions, turn.logprobs = [], []
    buffer.append([ref([logged])])
    assert buffer.advance(2) == 0
    assert buffer.statistics()["staleness_max"] == 2
    assert buffer.statistics()["staleness_mean"] == pytest.approx(1.0)
    assert buffer.advance(4) == 4
    assert ids(buffer.window(9)) == ["logged", "run/2/0", "run/2/1"]
    assert buffer.advance(3) == 0
    assert buffer.append([ref(batch(1, 3))]) == Appended(added=1, duplicates=2)
    assert "run/1/2" not in ids(buffer.window(9))
    assert dropped(buffer) == {"staleness": 5}
    assert buffer.statistics()["version"] == 4


@pytest.mark.parametrize(("name", "value"), [("max_conversations", 0), ("max_bytes", 0), ("max_staleness", -1)])
def test_impossible_bounds(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is {value}"):
        ReplayBuffer(tmp_path, **{name: value})


def test_small_appends_share_objects(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    for one in batch(0, 20):
        buffer.append([ref([one])])
    assert buffer.statistics()["objects"] == 1
    assert from_table(buffer.window(1)) == sorted(batch(0, 20), key=lambda one: one.id)
    assert ReplayBuffer(tmp_path).window(1).equals(buffer.window(1))
