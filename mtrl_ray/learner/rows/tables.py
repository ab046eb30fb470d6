"""Arrow tables as flat arrays: what the learner reads of conversations and responses, without a loop over tokens.

- A column of lists is its values, flat, and where each list starts. Nothing is turned into Python objects.
- `Dialogues` numbers turns and tokens through the whole table. Agent turns and agent tokens are numbered again on their own, in
  order: these numbers identify what is read, trained and returned.
- `Responses` resolves (conversation_id, turn) to the state's conversation and its length in tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrl_ray.dialogue.conversation import SCHEMA, Finish, Role, StopReason
from mtrl_ray.dialogue.responses import RESPONSES, require_columns
from mtrl_ray.errors import DataError

Tables: TypeAlias = pa.Table | Sequence[pa.Table]


def as_table(tables: Tables) -> pa.Table:
    """One table from one or several of the same schema."""
    return tables if isinstance(tables, pa.Table) else pa.concat_tables(tables)


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """Where each of consecutive lists starts, and the end: int64 [lists + 1]."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`start, …, start + length - 1` for each pair, one after another, int64 [sum of lengths]."""
    shift = starts - starts_of(lengths)[:-1]
    return np.repeat(shift, lengths) + np.arange(int(lengths.sum()), dtype=np.int64)


@dataclass(frozen=True)
class Dialogues:
    """Conversations as flat arrays.

    `ids`: string [conversations]. `tokens`: int32 [tokens]. `first_turn`: int64 [conversations + 1], into turns.
    `turn_starts`: int64 [turns + 1], into tokens. `agent`: bool [turns]. `rewards`: float32 [turns]. `truncated`: bool [turns],
    answers that ended at the response's token limit. `cut`: bool [conversations], those that ended because the context window
    was full (`StopReason.TOKEN_LIMIT`): their continuation is unknown, not empty. `logprobs`, `versions`: lists [turns], see
    `behaviour`.
    """

    ids: pa.Array
    tokens: np.ndarray
    first_turn: np.ndarray
    turn_starts: np.ndarray
    agent: np.ndarray
    rewards: np.ndarray
    truncated: np.ndarray
    cut: np.ndarray
    logprobs: pa.Array
    versions: pa.Array

    @classmethod
    def read(cls, tables: Tables) -> "Dialogues":
        """The conversations of one or several tables of `SCHEMA`. Raises DataError if a column is missing."""
        table = as_table(tables)
        require_columns(table, SCHEMA, "conversations")
        turns, first_turn = _lists(table["turns"])
        tokens, turn_starts = _lists(pc.struct_field(turns, "tokens"))
        return cls(
            ids=_one(table["id"]),
            tokens=_numpy(tokens),
            first_turn=first_turn,
            turn_starts=turn_starts,
            agent=_equal(pc.struct_field(turns, "role"), Role.AGENT.value),
            rewards=_numpy(pc.struct_field(turns, "reward")),
            truncated=_equal(pc.struct_field(turns, "finish"), Finish.LENGTH.value),
            cut=_equal(_one(table["stop"]), StopReason.TOKEN_LIMIT.value),
            logprobs=pc.struct_field(turns, "logprobs"),
            versions=pc.struct_field(turns, "versions"),
        )

    def __len__(self) -> int:
        return len(self.first_turn) - 1

    @cached_property
    def starts(self) -> np.ndarray:
        """First token of each conversation, and the end: int64 [conversations + 1]."""
        return self.turn_starts[self.first_turn]

    @cached_property
    def turn_conversation(self) -> np.ndarray:
        """The conversation of each turn, int64 [turns]."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.first_turn))

    @cached_property
    def turn_lengths(self) -> np.ndarray:
        """Tokens of each turn, int64 [turns]."""
        return np.diff(self.turn_starts)

    @cached_property
    def agent_turns(self) -> np.ndarray:
        """The agent's turns that have tokens, int64 [agent turns]. Raises DataError for one without any history."""
        turns = np.flatnonzero(self.agent & (self.turn_lengths > 0))
        orphans = turns[self.turn_starts[turns] == self.starts[self.turn_conversation[turns]]]
        if len(orphans):
            identity = self.ids[int(self.turn_conversation[orphans[0]])].as_py()
            raise DataError(
                f"conversation {identity!r} begins with an agent turn; there is no history to predict it from"
            )
        return turns

    @cached_property
    def agent_tokens(self) -> np.ndarray:
        """The agent's tokens, int64 [agent tokens], into tokens."""
        return ranges(self.turn_starts[self.agent_turns], self.turn_lengths[self.agent_turns])

    @cached_property
    def behaviour(self) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability of each agent token and version of the weights that sampled it, float32 and int32 [agent tokens].

        Raises DataError if there are no agent tokens, or if an agent turn lacks one of the two: no policy sampled it.
        """
        turns = self.agent_turns
        if not len(turns):
            raise DataError("none of the conversations has an agent turn with tokens; there is nothing to learn from")
        found = []
        for name, column in (("log-probabilities", self.logprobs), ("weight versions", self.versions)):
            values, starts = _lists(column.take(pa.array(turns)))
            wrong = np.flatnonzero(np.diff(starts) != self.turn_lengths[turns])
            if len(wrong):
                turn = turns[wrong[0]]
                identity = self.ids[int(self.turn_conversation[turn])].as_py()
                raise DataError(
                    f"conversation {identity!r} has an agent turn of {self.turn_lengths[turn]} tokens with "
                    f"{np.diff(starts)[wrong[0]]} {name}; only conversations that a policy sampled can improve it"
                )
            found.append(_numpy(values))
        return found[0], found[1]

    @cached_property
    def overlong(self) -> np.ndarray:
        """The agent's turns that were `truncated`, and the last one with tokens of a `cut` conversation, bool [agent turns]."""
        turns = self.agent_turns
        conversation = self.turn_conversation[turns]
        last = np.append(np.diff(conversation) != 0, True)[: len(turns)]
        return self.truncated[turns] | (last & self.cut[conversation])

    def agent_turn_numbers(self) -> np.ndarray:
        """Index of each agent turn in its conversation's turns, int32 [agent turns]."""
        turns = self.agent_turns
        return (turns - self.first_turn[self.turn_conversation[turns]]).astype(np.int32)


@dataclass(frozen=True)
class Responses:
    """Single responses as flat arrays.

    `conversation`: int64 [responses], into the dialogues; `turn`: int64 [responses], into their turns, whose history is
    the state; `attach`: int64 [responses], tokens of that history; `tokens`, `logprobs`, `versions`: flat
    [response tokens]; `starts`: int64 [responses + 1], into these; `truncated`: bool [responses], see `Dialogues`.
    """

    conversation: np.ndarray
    turn: np.ndarray
    attach: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    starts: np.ndarray
    truncated: np.ndarray

    @classmethod
    def read(cls, tables: Tables, dialogues: Dialogues) -> "Responses":
        """Responses on states of `dialogues`. Raises DataError for a state that does not exist or has no history."""
        table = as_table(tables)
        require_columns(table, RESPONSES, "responses")
        conversation, turn = _states(table, dialogues)
        attach = dialogues.turn_starts[turn] - dialogues.starts[conversation]
        tokens, starts = _lists(table["tokens"])
        logprobs, logprob_starts = _lists(table["logprobs"])
        versions, version_starts = _lists(table["versions"])
        lengths = np.diff(starts)
        _refuse(table, lengths == 0, "has no tokens")
        _refuse(table, attach == 0, "is on a state without any history")
        _refuse(table, np.diff(logprob_starts) != lengths, "has another number of log-probabilities than of tokens")
        _refuse(table, np.diff(version_starts) != lengths, "has another number of versions than of tokens")
        truncated = _equal(_one(table["finish"]), Finish.LENGTH.value)
        return cls(conversation, turn, attach, _numpy(tokens), _numpy(logprobs), _numpy(versions), starts, truncated)

    @classmethod
    def logged(cls, dialogues: Dialogues, sampled: bool = True) -> "Responses":
        """What the agent said, each agent turn as a response in its state.

        sampled: False for texts that no policy sampled, whose log-probabilities and versions are 0; otherwise raises DataError
        like `Dialogues.behaviour`.
        """
        turns = dialogues.agent_turns
        conversation = dialogues.turn_conversation[turns]
        attach = dialogues.turn_starts[turns] - dialogues.starts[conversation]
        starts = starts_of(dialogues.turn_lengths[turns])
        tokens, truncated = dialogues.tokens[dialogues.agent_tokens], dialogues.truncated[turns]
        logprobs, versions = np.zeros(len(tokens), np.float32), np.zeros(len(tokens), np.int32)
        if sampled:
            logprobs, versions = dialogues.behaviour
        return cls(conversation, turns, attach, tokens, logprobs, versions, starts, truncated)

    def take(self, rows: np.ndarray) -> "Responses":
        """Some of them, by number, in this order."""
        tokens = ranges(self.starts[rows], self.lengths[rows])
        return Responses(
            conversation=self.conversation[rows],
            turn=self.turn[rows],
            attach=self.attach[rows],
            tokens=self.tokens[tokens],
            logprobs=self.logprobs[tokens],
            versions=self.versions[tokens],
            starts=starts_of(self.lengths[rows]),
            truncated=self.truncated[rows],
        )

    def __add__(self, others: "Responses") -> "Responses":
        """These and then the others, on states of the same dialogues."""
        names = [field.name for field in fields(self) if field.name != "starts"]
        joined = {name: np.concatenate([getattr(self, name), getattr(others, name)]) for name in names}
        return Responses(**joined, starts=np.concatenate([self.starts, self.starts[-1] + others.starts[1:]]))

    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the responses that no earlier one on the same state equals, token by token; and of each response, which of
        these it equals: int64 [distinct], int64 [responses]."""
        found: dict[tuple[int, bytes], int] = {}
        kinds = np.empty(len(self), dtype=np.int64)
        for number in range(len(self)):
            said = self.tokens[self.starts[number] : self.starts[number + 1]].tobytes()
            kinds[number] = found.setdefault((int(self.turn[number]), said), len(found))
        return np.unique(kinds, return_index=True)[1].astype(np.int64), kinds

    def __len__(self) -> int:
        return len(self.attach)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each response, int64 [responses]."""
        return np.diff(self.starts)

    @cached_property
    def state(self) -> np.ndarray:
        """Number of the state each response is on, int64 [responses]: responses with equal numbers are alternatives."""
        return np.unique(self.turn, return_inverse=True)[1].astype(np.int64)


def _states(table: pa.Table, dialogues: Dialogues) -> tuple[np.ndarray, np.ndarray]:
    """The conversation and the turn (numbered through all of them) that each response's state belongs to."""
    found = pc.index_in(_one(table["conversation_id"]), value_set=dialogues.ids)
    _refuse(table, _numpy(pc.is_null(found)), "is on a conversation that was not given")
    conversation = _numpy(found).astype(np.int64)
    number = _numpy(table["turn"]).astype(np.int64)
    turns = np.diff(dialogues.first_turn)[conversation]
    _refuse(table, (number < 0) | (number >= turns), "is on a turn that its conversation does not have")
    turn = dialogues.first_turn[conversation] + number
    _refuse(table, ~dialogues.agent[turn], "is on a turn that is not the agent's")
    return conversation, turn


def _refuse(table: pa.Table, wrong: np.ndarray, why: str) -> None:
    if wrong.any():
        row = table.slice(int(np.flatnonzero(wrong)[0]), 1).to_pylist()[0]
        name = f"conversation {row['conversation_id']!r}, turn {row['turn']}, sample {row['sample']}"
        raise DataError(f"the response to {name} {why}")


def _one(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column as one array."""
    return (
        pa.concat_arrays(column.chunks)
        if isinstance(column, pa.ChunkedArray) and column.num_chunks
        else (pa.array([], column.type) if isinstance(column, pa.ChunkedArray) else column)
    )


def _lists(column: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """The values of a column of lists, and where each list starts (int64 [lists + 1])."""
    column = _one(column)
    lengths = _numpy(pc.fill_null(pc.list_value_length(column), 0))
    return pc.list_flatten(column), starts_of(lengths)


def _equal(column: pa.Array, value: str) -> np.ndarray:
    """Whether each string of a column has this value, bool; false for nulls."""
    return _numpy(pc.fill_null(pc.equal(column, value), False))


def _numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return _one(column).to_numpy(zero_copy_only=False)
