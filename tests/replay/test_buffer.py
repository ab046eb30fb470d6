"""The replay buffer: every conversation once, bounds kept, answers that do not depend on arrival, losses made good."""

import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrl_ray.conversation import (
    SCHEMA,
    Conversation,
    Finish,
    Role,
    StopReason,
    Turn,
    from_table,
    to_table,
    validate,
)
from mtrl_ray.errors import ConfigurationError, DataError, EngineError
from mtrl_ray.replay import columns, memory, sampling
from mtrl_ray.replay.buffer import STATES, Appended, ReplayBuffer
from mtrl_ray.replay.journal import Journal

pytestmark = pytest.mark.usefixtures("ray_cluster")


def conversation(name: str, iteration: int = 0, turns: int = 2, seed: int = 0, **changes: Any) -> Conversation:
    rng = np.random.default_rng([seed, iteration, *name.encode()])
    said = [Turn(Role.SYSTEM, "Sell.", rng.integers(0, 99, 4).tolist())]
    for number in range(turns):
        length = int(rng.integers(1, 9))
        said.append(Turn(Role.USER, f"Question {number}?", rng.integers(0, 99, int(rng.integers(1, 9))).tolist()))
        said.append(
            Turn(
                Role.AGENT,
                f"Answer {number}.",
                rng.integers(0, 99, length).tolist(),
                rng.normal(size=length).astype(np.float32).tolist(),
                [iteration + number] * length,
                Finish.STOP,
                reward=float(number),
            )
        )
    fields: dict[str, Any] = {"score": 0.5, "context_id": name, "metrics": {"points": 2.0}, **changes}
    return Conversation(
        name, "sales", "train", turns=said, stop=StopReason.OUTCOME, iteration=iteration, seed=seed, **fields
    )


def batch(iteration: int, size: int = 4, **changes: Any) -> list[Conversation]:
    return [conversation(f"run/{iteration}/{number}", iteration, **changes) for number in range(size)]


def ref(conversations: list[Conversation]) -> ray.ObjectRef:
    return ray.put(to_table(conversations))


def ids(table: pa.Table) -> list[str]:
    return table["id"].to_pylist()


def dropped(buffer: ReplayBuffer) -> dict[str, float]:
    counts = {name: count for name, count in buffer.statistics().items() if name.startswith("dropped_") and count}
    return {name.removeprefix("dropped_"): count for name, count in counts.items()}


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
    assert one.sample(6, seed=3).equals(two.sample(6, seed=3))
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


BROKEN = st.sampled_from(
    ["score", "logprobs", "versions", "reward", "nan", "user", "role", "finish", "stop", "context"]
)


@given(st.lists(st.tuples(st.integers(0, 3), st.none() | BROKEN), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_faults_are_those_that_reading_and_validating_each_conversation_finds(
    plan: list[tuple[int, str | None]], seed: int
) -> None:
    rows = []
    for number, (turns, damage) in enumerate(plan):
        row = to_table([conversation(f"c{number}", turns=turns, seed=seed)]).to_pylist()[0]
        _break(row, damage)
        rows.append(row)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    expected = {number: _sentence(table.slice(number, 1)) for number in range(len(rows))}
    assert columns.faults(table) == {number: sentence for number, sentence in expected.items() if sentence}


def _sentence(row: pa.Table) -> str:
    try:
        validate(from_table(row)[0])
    except DataError as error:
        return str(error)
    return ""


def _break(row: dict[str, Any], damage: str | None) -> None:
    agents = [turn for turn in row["turns"] if turn["role"] == "agent"]
    if damage == "score":
        row["score"] = -0.1
    elif damage == "stop":
        row["stop"] = "tired"
    elif damage == "context":
        row["context"] = "{"
    elif damage == "user":
        row["turns"][0]["versions"] = [1] * len(row["turns"][0]["tokens"])
    elif damage in ("logprobs", "versions") and agents:
        agents[-1][damage] = [*agents[-1][damage][1:], 1, 1]
    elif damage == "nan" and agents:
        agents[0]["logprobs"][0] = float("nan")
    elif damage == "reward" and agents:
        agents[-1]["reward"] = float("-inf")
    elif damage in ("role", "finish") and agents:
        agents[0][damage] = "unheard of"


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_measures_and_histories_are_those_of_the_conversations(lengths: list[int], seed: int) -> None:
    conversations = [conversation(f"c{number}", number, turns, seed) for number, turns in enumerate(lengths)]
    table = pa.concat_tables([to_table([conversation("before")]), to_table(conversations)]).combine_chunks().slice(1)
    measured = columns.measures(table).to_pylist()
    for row, one in zip(measured, conversations, strict=True):
        versions = [version for turn in one.turns for version in turn.versions]
        assert row["version"] == min(versions, default=None)
        assert row["tokens"] == len(one.tokens)
        assert row["turns"] == len(one.agent_turns)
        assert (row["id"], row["iteration"], row["score"]) == (one.id, one.iteration, one.score)
    pairs = [(row, turn) for row, one in enumerate(conversations) for turn in one.agent_turns][::-1]
    rows, turns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    expected = [conversations[row].history(turn) for row, turn in pairs]
    assert columns.histories(table, rows, turns).to_pylist() == expected


def test_logged_states_are_drawn_uniformly_without_replacement(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    conversations = [conversation(f"c{number}", number % 2, turns=number) for number in range(5)]
    buffer.append([ref(conversations)])
    by_id = {one.id: one for one in conversations}
    every = {(one.id, turn) for one in conversations for turn in one.agent_turns}
    table = buffer.states(None, seed=0)
    assert table.schema.equals(STATES)
    assert {(row["conversation_id"], row["turn"]) for row in table.to_pylist()} == every
    assert table.num_rows == len(every) == 10
    for row in table.to_pylist():
        assert row["tokens"] == by_id[row["conversation_id"]].history(row["turn"])
    assert buffer.states(3, seed=1).equals(buffer.states(3, seed=1))
    drawn: Counter[tuple[str, int]] = Counter()
    for seed in range(600):
        drawn.update((row["conversation_id"], row["turn"]) for row in buffer.states(3, seed).to_pylist())
    assert set(drawn) == every
    assert max(abs(count - 180) for count in drawn.values()) < 60  # 5 standard deviations
    newest = buffer.states(None, 0, iterations=1)["conversation_id"].to_pylist()
    assert Counter(newest) == {"c1": 1, "c3": 3}
    assert set(buffer.states(2, 0, ids=["c2"])["conversation_id"].to_pylist()) == {"c2"}
    with pytest.raises(DataError, match="11 logged states were asked of 5 conversations, which have 10"):
        buffer.states(11, seed=0)


def test_states_of_text_without_tokens_are_refused(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    turns = [Turn(Role.USER, "Hello?"), Turn(Role.AGENT, "Hello.")]
    logged = Conversation("logged", "chat", "train", "logged", turns, 1.0, StopReason.LOGGED)
    assert buffer.append([ref([logged])]).added == 1
    with pytest.raises(DataError, match="'logged' first; encode"):
        buffer.states(1, seed=0)


def test_uniform_samples(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    with pytest.raises(DataError, match="holds 0"):
        buffer.sample(1, seed=0)
    buffer.append([ref(batch(0, 10))])
    sample = buffer.sample(10, seed=4)
    assert sorted(ids(sample)) == sorted(one.id for one in batch(0, 10))
    assert ids(sample) != sorted(ids(sample))
    assert sample["weight"].to_pylist() == [1.0] * 10
    assert ids(buffer.sample(4, seed=4)) != ids(buffer.sample(4, seed=5))
    assert {one.id for one in from_table(sample)} == set(ids(sample))
    with pytest.raises(DataError, match="a sample of 11 conversations was asked of a buffer that holds 10"):
        buffer.sample(11, seed=0)
    with pytest.raises(ConfigurationError, match="score_variance"):
        buffer.sample(1, seed=0, prioritised="luck")


def test_samples_follow_the_priorities_and_weights_undo_them(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    buffer.append([ref(batch(0, 4))])
    names = [one.id for one in batch(0, 4)]
    buffer.update_priorities([*names[:3], "gone"], [1.0, 2.0, 5.0, 100.0])
    drawn: Counter[str] = Counter()
    weights = {}
    for seed in range(200):
        sample = buffer.sample(20, seed, "priority", exponent=1.0, correction=1.0)
        drawn.update(ids(sample))
        weights |= dict(zip(ids(sample), sample["weight"].to_pylist(), strict=True))
    expected = np.array([1, 2, 5, 5]) / 13  # the last was never rated: the greatest so far
    frequencies = np.array([drawn[name] for name in names]) / 4000
    np.testing.assert_allclose(frequencies, expected, atol=0.01)
    np.testing.assert_allclose([weights[name] for name in names], [1, 1 / 2, 1 / 5, 1 / 5], rtol=1e-6)
    for wrong in ([0.0], [float("nan")], [1.0, 2.0]):
        with pytest.raises(DataError, match="positive, finite"):
            buffer.update_priorities(names[:1], wrong)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.floats(0, 1), st.integers(0, 9))
@settings(deadline=None)
def test_the_weighted_sample_estimates_the_uniform_mean(priorities: list[float], exponent: float, seed: int) -> None:
    """Strata keep every count within two of its expectation, so that weights of beta = 1 undo the priorities."""
    values = np.array(priorities)
    probabilities = values**exponent / (values**exponent).sum()
    drawn, weights = sampling.proportional(values, 4000, seed, exponent, 1.0)
    counts = np.bincount(drawn, minlength=len(values))
    assert np.abs(counts - 4000 * probabilities).max() <= 2
    np.testing.assert_allclose(weights, (probabilities.min() / probabilities)[drawn], rtol=1e-9)
    assert weights.max() <= 1


def test_contexts_with_varied_outcomes_are_drawn_more_often(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    scores = {"sure": [1.0, 1.0], "open": [0.0, 1.0], "half": [0.5, 0.9]}
    conversations = [
        conversation(f"{context}{number}", score=score, context_id=context)
        for context, values in scores.items()
        for number, score in enumerate(values)
    ]
    buffer.append([ref(conversations)])
    drawn = Counter(name[:-1] for name in ids(buffer.sample(3000, 0, "score_variance", exponent=1.0)))
    variance = {context: np.var(values) + sampling.VARIANCE_FLOOR for context, values in scores.items()}
    for context in scores:
        assert drawn[context] / 3000 == pytest.approx(variance[context] / sum(variance.values()), abs=0.005)


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


def test_a_new_buffer_begins_with_the_newest_of_the_journal(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    for iteration in range(4):
        buffer.append([ref(batch(iteration))])
    again = ReplayBuffer(tmp_path)
    assert again.window(99).equals(buffer.window(99))
    assert again.append([ref(batch(2))]) == Appended(added=0, duplicates=4)
    small = ReplayBuffer(tmp_path, max_conversations=6)
    assert ids(small.window(99)) == ids(buffer.window(99))[-6:]
    assert dropped(small) == {}
    assert small.append([ref(batch(0))]) == Appended(added=0, duplicates=4)


def test_a_resumed_buffer_is_the_one_of_the_checkpoint(tmp_path: Path) -> None:
    undisturbed = ReplayBuffer(tmp_path / "one", max_conversations=10)
    resumed = ReplayBuffer(tmp_path / "two", max_conversations=10)
    for buffer in (undisturbed, resumed):
        for iteration in range(3):
            buffer.append([ref(batch(iteration))])
        buffer.advance(3)
        buffer.update_priorities([one.id for one in batch(2)], [1, 2, 3, 4])
    state = json.loads(json.dumps(resumed.state()))
    resumed.append([ref(batch(3)[:3])])  # after the checkpoint, before the kill
    resumed = ReplayBuffer(tmp_path / "two", max_conversations=10)
    assert resumed.rebuild(state) == 10
    for iteration in (3, 4):
        for buffer in (undisturbed, resumed):
            assert buffer.append([ref(batch(iteration))]) == Appended(added=4, duplicates=0)
            buffer.advance(iteration + 1)
        assert resumed.window(99).equals(undisturbed.window(99))
        assert resumed.sample(5, iteration, "priority").equals(undisturbed.sample(5, iteration, "priority"))
    one, two = undisturbed.statistics(), resumed.statistics()
    for measured in (one, two):
        del measured["objects"], measured["bytes"]
    assert one == two
    assert Journal(tmp_path / "two").position.rows == 20


def test_what_came_after_the_checkpoint_can_be_recalled(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    buffer.append([ref(batch(0))])
    state = buffer.state()
    buffer.append([ref(batch(1)[:3])])
    resumed = ReplayBuffer(tmp_path)
    resumed.rebuild(state)
    assert resumed.ids(1) == []
    assert resumed.outcomes(1) == {"id": [], "score": [], "agent_turns": [], "agent_tokens": []}
    assert resumed.recall(1) == 3
    assert resumed.recall(1) == 0
    assert resumed.ids(1) == [one.id for one in batch(1)[:3]]
    found = resumed.outcomes(1)
    assert found["score"] == [0.5] * 3
    assert (len(set(found["id"])), sum(found["agent_turns"])) == (3, 6)
    assert resumed.append([ref(batch(1))]) == Appended(added=1, duplicates=3)
    assert from_table(resumed.window(2)) == batch(0) + batch(1)
    assert Journal(tmp_path).position.rows == 8


def test_ids_of_an_iteration_include_what_memory_dropped(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path, max_conversations=3)
    buffer.append([ref(batch(0))])
    buffer.append([ref(batch(1))])
    assert buffer.ids(0) == [one.id for one in batch(0)]
    assert buffer.outcomes(0) == {"id": [], "score": [], "agent_turns": [], "agent_tokens": []}
    assert buffer.ids(2) == []


def test_a_checkpoint_of_another_journal_is_refused(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path / "one")
    buffer.append([ref(batch(0))])
    with pytest.raises(DataError, match=r"names 4 conversations that the journal .*two does not have"):
        ReplayBuffer(tmp_path / "two").rebuild(buffer.state())


def test_a_full_disk_takes_nothing_and_the_append_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = ReplayBuffer(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", _full)
        with pytest.raises(EngineError, match="no space is left"):
            buffer.append([ref(batch(0))])
    assert buffer.window(1).num_rows == 0
    assert buffer.append([ref(batch(0))]) == Appended(added=4, duplicates=0)


def _full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


@ray.remote(num_cpus=0)
class Owner:
    """Owns the objects it puts, and takes them along when it dies."""

    def put(self, table: pa.Table) -> list[ray.ObjectRef]:
        return [ray.put(table)]


def _of_a_dead_owner(table: pa.Table) -> ray.ObjectRef:
    owner = Owner.remote()
    [lost] = ray.get(owner.put.remote(table))
    ray.kill(owner)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # the death of an owner takes Ray a second or two to notice
        try:
            ray.get(lost, timeout=5)
        except ray.exceptions.ObjectLostError:
            return lost
        time.sleep(0.1)
    pytest.fail("the object of a killed owner is still there after 30 s")


def test_tables_that_cannot_be_fetched_are_named_and_the_others_taken(tmp_path: Path) -> None:
    @ray.remote(num_cpus=0, max_retries=0)
    def failing() -> pa.Table:
        raise EngineError("the sampler is gone")

    buffer = ReplayBuffer(tmp_path)
    refs = [_of_a_dead_owner(to_table(batch(1))), ref(batch(0)), failing.remote()]
    appended = buffer.append(refs)
    assert appended.added == 4
    assert appended.lost[0].startswith("OwnerDiedError: ")
    assert appended.lost[2] == "EngineError: the sampler is gone"
    assert set(appended.lost) == {0, 2}
    assert Journal(tmp_path).iterations() == [0]
    assert buffer.statistics()["lost"] == 2


def test_a_lost_object_is_read_from_the_journal_again(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    conversations = batch(0)[::-1] + batch(1)[::-1]
    buffer.append([ref(conversations)])
    [segment] = buffer._memory._segments.values()
    segment.ref = _of_a_dead_owner(to_table(conversations))
    assert from_table(buffer.window(2)) == batch(0) + batch(1)
    assert buffer.statistics()["restored"] == 8
    assert from_table(buffer.window(1)) == batch(1)
    assert buffer.statistics()["restored"] == 8


def test_what_is_lost_everywhere_is_said(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    buffer.append([ref(batch(0))])
    [segment] = buffer._memory._segments.values()
    segment.ref = _of_a_dead_owner(to_table(batch(0)))
    for path in tmp_path.glob("*.parquet"):
        path.write_bytes(b"torn")
    with pytest.raises(EngineError, match="4 conversations was lost, and 4 of them could not be restored"):
        buffer.window(1)
    assert buffer.statistics()["journal_problems"] == len(buffer.problems()) == 1


def test_the_actor_hands_on_tables_by_ref_and_survives_its_own_death(tmp_path: Path) -> None:
    @ray.remote(num_cpus=0)
    def learn(table: pa.Table) -> list[str]:
        return ids(table)

    buffer = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(ReplayBuffer).remote(str(tmp_path))
    for iteration in range(2):
        appended = ray.get(buffer.append.remote([ref(batch(iteration)), ref(batch(iteration)[:2])]))
        assert appended == Appended(added=4, duplicates=2)
    expected = [one.id for one in batch(0) + batch(1)]
    assert ray.get(learn.remote(buffer.window.remote(2))) == expected
    before = ray.get(buffer.states.remote(5, 1))
    held = buffer.window.remote(1)
    ray.wait([held])
    ray.kill(buffer, no_restart=False)
    assert ray.get(learn.remote(buffer.window.remote(2))) == expected
    assert ids(ray.get(held)) == expected[4:]
    assert ray.get(buffer.states.remote(5, 1)).equals(before)
    assert ray.get(buffer.append.remote([ref(batch(1))])) == Appended(added=0, duplicates=4)
    with pytest.raises(DataError, match="holds 8"):
        ray.get(buffer.sample.remote(9, 0))
    ray.kill(buffer)


def test_small_appends_share_objects_and_files_can_be_merged(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    for one in batch(0, 20):
        buffer.append([ref([one])])
    assert buffer.statistics()["objects"] == 1
    assert buffer.compact(0) == 19
    assert from_table(buffer.window(1)) == sorted(batch(0, 20), key=lambda one: one.id)
    assert ReplayBuffer(tmp_path).window(1).equals(buffer.window(1))
