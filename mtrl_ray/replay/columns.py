"""Measures of a table of conversations for the buffer, computed on whole columns.

The turns of all rows are one flat array, and so are the tokens of all turns: a history is one stretch of it. `measures` gives
the numbers that the index keeps, `faults` the rows that are no valid conversations, `histories` the token ids before given
turns. None of them makes a Python object per token.
"""

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrl_ray.dialogue.conversation import SCHEMA, TURN, Finish, Role, StopReason, from_table, sources, validate
from mtrl_ray.errors import DataError

MEASURES = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("iteration", pa.int32()),
        pa.field("context_id", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("version", pa.int32()),  # least weight version among the agent's tokens; null if none is known
        pa.field("tokens", pa.int64()),
        pa.field("turns", pa.int32()),  # the agent's
        pa.field("agent_tokens", pa.int64()),
        pa.field("source", pa.string()),  # `conversation.sources`
    ]
)


class Turns:
    """The turns of a table, flat. Rows and turns are numbered from 0 in the table's order."""

    def __init__(self, table: pa.Table) -> None:
        lists = table["turns"].combine_chunks()
        self.rows = table.num_rows
        self.flat = pc.list_flatten(lists)
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)  # [rows + 1]
        self.row = np.repeat(np.arange(self.rows), lengths)  # [turns]

    @cached_property
    def agent(self) -> np.ndarray:
        """bool [turns]: whether the policy took it."""
        return pc.fill_null(pc.equal(self.column("role"), Role.AGENT.value), False).to_numpy(zero_copy_only=False)

    def column(self, name: str) -> pa.Array:
        """A field of the turns [turns]."""
        return pc.struct_field(self.flat, name)

    def ragged(self, name: str) -> "Ragged":
        """A list field of the turns."""
        lists = self.column(name)
        return Ragged(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(), pc.list_flatten(lists))

    def rows_with(self, turns: np.ndarray) -> np.ndarray:
        """bool [rows]: whether any of its turns is marked in `turns` (bool [turns])."""
        return np.bincount(self.row[turns], minlength=self.rows).astype(bool)


@dataclass(frozen=True)
class Ragged:
    """A list per turn: its length [turns], and all values in one array."""

    lengths: np.ndarray
    values: pa.Array

    @property
    def turn(self) -> np.ndarray:
        """The turn of each value."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)


def measures(table: pa.Table) -> pa.Table:
    """Rows of `MEASURES`, in the table's order."""
    turns = Turns(table)
    lengths = turns.ragged("tokens").lengths
    versions = turns.ragged("versions")
    row = turns.row[versions.turn]
    least = np.full(turns.rows, np.iinfo(np.int32).max)
    np.minimum.at(least, row, versions.values.to_numpy())
    unknown = np.bincount(row, minlength=turns.rows) == 0
    columns = {name: table[name].combine_chunks() for name in ("id", "iteration", "context_id", "score")}
    columns["version"] = pa.array(least.astype(np.int32), mask=unknown)
    columns["tokens"] = pa.array(np.bincount(turns.row, weights=lengths, minlength=turns.rows).astype(np.int64))
    agent = turns.row[turns.agent]
    columns["turns"] = pa.array(np.bincount(agent, minlength=turns.rows).astype(np.int32))
    spoken = np.bincount(agent, weights=lengths[turns.agent], minlength=turns.rows)
    columns["agent_tokens"] = pa.array(spoken.astype(np.int64))
    columns["source"] = pa.array(sources(table), pa.string())
    return pa.table(columns, schema=MEASURES)


def faults(table: pa.Table) -> dict[int, str]:
    """Rows that are not valid conversations, each with the sentence that says why."""
    turns = Turns(table)
    bad = _bad_rows(table) | turns.rows_with(_bad_turns(turns))
    return {int(row): _sentence(table.slice(row, 1)) for row in np.flatnonzero(bad)}


def histories(table: pa.Table, rows: np.ndarray, turns: np.ndarray) -> pa.ListArray:
    """Token ids of everything before turn `turns[i]` of row `rows[i]`, int32 lists [states]."""
    flat = Turns(table)
    tokens = flat.ragged("tokens")
    ends = np.concatenate([[0], np.cumsum(tokens.lengths)]).astype(np.int64)
    first = ends[flat.starts[rows]]
    lengths = ends[flat.starts[rows] + turns] - first
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    gather = np.repeat(first - offsets[:-1], lengths) + np.arange(offsets[-1])
    values = tokens.values.to_numpy()[gather]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int32()))


def agent_turn(table: pa.Table, rows: np.ndarray, nth: np.ndarray) -> np.ndarray:
    """Index into the turns of row `rows[i]` of its `nth[i]`-th agent turn (0-based), int [states]."""
    turns = Turns(table)
    flat = np.flatnonzero(turns.agent)
    before = np.concatenate([[0], np.cumsum(np.bincount(turns.row[flat], minlength=turns.rows))])
    return flat[before[rows] + nth] - turns.starts[rows]


def _bad_rows(table: pa.Table) -> np.ndarray:
    bad = np.zeros(table.num_rows, dtype=bool)
    for field in SCHEMA:
        if not field.nullable:
            bad |= pc.is_null(table[field.name]).to_numpy()
    score = table["score"].to_numpy()
    bad |= ~((score >= 0) & (score <= 1))
    bad |= ~_one_of(table["stop"], StopReason)
    for name in ("context", "metrics"):
        bad |= np.array([not _is_json(text) for text in table[name].to_pylist()], dtype=bool)
    return bad


def _bad_turns(turns: Turns) -> np.ndarray:
    bad = pc.is_null(turns.flat).to_numpy(zero_copy_only=False)
    for field in TURN:
        if not field.nullable:
            bad = bad | pc.is_null(turns.column(field.name)).to_numpy(zero_copy_only=False)
    bad |= ~_one_of(turns.column("role"), Role)
    finish = turns.column("finish")
    bad |= ~(_one_of(finish, Finish) | pc.is_null(finish).to_numpy(zero_copy_only=False))
    bad |= ~np.isfinite(turns.column("reward").to_numpy(zero_copy_only=False))
    tokens, logprobs, versions = (turns.ragged(name) for name in ("tokens", "logprobs", "versions"))
    for ragged in (logprobs, versions):
        bad |= (ragged.lengths != 0) & ~(turns.agent & (ragged.lengths == tokens.lengths))
    bad[logprobs.turn[~np.isfinite(logprobs.values.to_numpy(zero_copy_only=False))]] = True
    for ragged in (tokens, versions):
        if ragged.values.null_count:
            bad[ragged.turn[pc.is_null(ragged.values).to_numpy(zero_copy_only=False)]] = True
    return bad


def _one_of(values: pa.Array | pa.ChunkedArray, members: type[Role] | type[Finish] | type[StopReason]) -> np.ndarray:
    known = pa.array([member.value for member in members], pa.string())
    return np.asarray(pc.is_in(values, known))


def _is_json(text: str | None) -> bool:
    try:
        json.loads(text or "")
    except (ValueError, RecursionError):
        return False
    return True


def _sentence(row: pa.Table) -> str:
    try:
        validate(from_table(row)[0])
    except DataError as error:
        return str(error)
    except (TypeError, RecursionError):
        pass
    return f"conversation {row['id'][0].as_py()!r}: a required value is missing or cannot be read"
