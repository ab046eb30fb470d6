"""What is read off a whole table at once is what reading its conversations one by one gives."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrl_ray.dialogue.conversation import SCHEMA, from_table, to_table, validate
from mtrl_ray.errors import DataError
from mtrl_ray.replay import columns
from tests.replay.making import conversation

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
