"""Turns, conversations and their Arrow schema: the data type that all parts exchange.

- The history of a conversation is the concatenation of its turns' `tokens`, only ever appended to.
- An agent turn's `tokens` are exactly the ids that the policy sampled, including its end-of-turn token if sampled. Each has a
  behaviour log-probability and the version of the weights that sampled it. All text that the chat template adds around them
  belongs to the neighbouring system or user turn, so the role gives the loss mask.
- Agent turns have the rewards: `reward` arrives with the following state (2511.21638 §2.1: reward on arrival).
- A conversation of another system may have no token ids; `tokens.encode` fills them in. Its agent tokens then have no
  log-probabilities, because it is off-policy data.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa

from mtrl_ray.errors import DataError


class Role(StrEnum):
    """Role of a turn."""

    SYSTEM = "system"
    USER = "user"
    """The simulated user; in the suggested-response setting, the customer and the message sent to them."""
    AGENT = "agent"
    """The policy. Only its turns have a loss."""


class StopReason(StrEnum):
    """Why a conversation ended."""

    OUTCOME = "outcome"
    """The outcome event of the environment happened (a sale, an agreed price, a final answer)."""
    USER_LEFT = "user_left"
    """The user ended the conversation without that event."""
    TURN_LIMIT = "turn_limit"
    """The environment's limit of agent turns was reached."""
    TOKEN_LIMIT = "token_limit"
    """The next response would not fit into the model's context window."""
    LOGGED = "logged"
    """An imported conversation without a recorded reason."""


class Finish(StrEnum):
    """Why the sampler stopped a response."""

    STOP = "stop"
    """It sampled the end-of-turn token."""
    LENGTH = "length"
    """It reached the token limit of a response; the template's end-of-turn token then belongs to the next turn."""


@dataclass
class Turn:
    """One turn of a conversation.

    `tokens`: ids this turn appended to the history. Agent turns only: `logprobs` (natural log, of each sampled token)
    and `versions` (of the weights), both as long as `tokens`, or both empty for logged data; `finish`; `sent`, the text
    sent to the user if it differs from the suggestion (None: sent as suggested); `reward`, on arrival.
    """

    role: Role
    text: str
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish: Finish | None = None
    sent: str | None = None
    reward: float = 0.0


@dataclass
class Conversation:
    """A finished conversation: identity, turns, outcome.

    `id` is unique within a run and derived from (run, iteration, context, sample); `seed` alone, with the context,
    the weights and the settings, determines all turns. `score` is in [0, 1]; `metrics` are the
    environment's other numbers. `context` describes the task to the environment and is hidden from the agent. `source` is
    the origin of the context (None: the context itself): conversations of one source are not independent of each other.
    """

    id: str
    environment: str
    split: str
    context_id: str
    turns: list[Turn]
    score: float
    stop: StopReason
    metrics: dict[str, float] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    iteration: int = 0
    sample: int = 0
    seed: int = 0
    source: str | None = None

    @property
    def agent_turns(self) -> list[int]:
        """Indices into `turns` of the agent's turns, in order."""
        return [index for index, turn in enumerate(self.turns) if turn.role == Role.AGENT]

    @property
    def overlong(self) -> list[int]:
        """Indices of the agent's turns that ended at a response's token limit, and of its last if the context window cut the
        conversation off."""
        agent = self.agent_turns
        cut = agent[-1:] if self.stop == StopReason.TOKEN_LIMIT else []
        return [turn for turn in agent if self.turns[turn].finish == Finish.LENGTH or turn in cut]

    def history(self, turn: int) -> list[int]:
        """Token ids of all turns before `turns[turn]`, which is the state of that turn."""
        return [token for earlier in self.turns[:turn] for token in earlier.tokens]

    @property
    def tokens(self) -> list[int]:
        """Token ids of the whole conversation, int [length]."""
        return self.history(len(self.turns))

    @property
    def mask(self) -> np.ndarray:
        """True if a token was sampled by the agent, bool [length]."""
        parts = [np.full(len(turn.tokens), turn.role == Role.AGENT) for turn in self.turns]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)

    @property
    def rewards(self) -> list[float]:
        """Rewards of the agent's turns, in order."""
        return [turn.reward for turn in self.turns if turn.role == Role.AGENT]


def visible_text(text: str, sent: str | None) -> str:
    """A user turn as the agent sees it: the text sent instead of its suggestion, then the user's message.

    Both are part of the state of 2511.21638 §2.1. A suggestion that was sent unchanged has no note.
    """
    return text if sent is None else f"(sent: {sent}) {text}"


def visible_history(turns: Sequence[Turn]) -> list[tuple[Role, str]]:
    """What the agent reads of these turns, as (role, text): each user turn as `visible_text` has it."""
    sent = [None, *(turn.sent for turn in turns)]
    return [
        (turn.role, visible_text(turn.text, before) if turn.role == Role.USER else turn.text)
        for turn, before in zip(turns, sent, strict=False)
    ]


GAIN = "gain_{}"
"""Optional metric of a simulated user: the information gain of an agent turn (from 0), at least 0."""
EXPECTED = "expected"
"""Optional metric of a simulated user whose gains are exact: their sum, the expected score of the conversation."""
TURN_WEIGHTS = "turn_weights"
"""Optional column of a table of conversations: the judge's weights of the agent's turns, list<float32>."""


TURN = pa.struct(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("tokens", pa.list_(pa.int32()), nullable=False),
        pa.field("logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("versions", pa.list_(pa.int32()), nullable=False),
        pa.field("finish", pa.string()),
        pa.field("sent", pa.string()),
        pa.field("reward", pa.float32(), nullable=False),
    ]
)

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("iteration", pa.int32(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("seed", pa.uint64(), nullable=False),
        pa.field("environment", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("context_id", pa.string(), nullable=False),
        pa.field("context", pa.string(), nullable=False),  # JSON
        pa.field("turns", pa.list_(TURN), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("metrics", pa.string(), nullable=False),  # JSON: name to number
        pa.field("stop", pa.string(), nullable=False),
        pa.field("source", pa.string()),
    ],
    metadata={"mtrl.conversation": "1"},
)
"""One row per finished conversation, in the journal and between processes."""
OPTIONAL = ("source",)
"""Columns that files of version 0.1 lack; `completed` adds them."""


def to_table(conversations: Iterable[Conversation]) -> pa.Table:
    """A table of `SCHEMA` with one row per conversation."""
    return pa.Table.from_pylist([_row(conversation) for conversation in conversations], schema=SCHEMA)


def from_table(table: pa.Table) -> list[Conversation]:
    """The conversations of a table of `SCHEMA`. Raises DataError if the table has another schema or an unknown role."""
    return list(iterate(table))


def iterate(table: pa.Table) -> Iterator[Conversation]:
    """Like `from_table`, but yields one conversation at a time."""
    table = completed(table)
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise DataError(f"a table of conversations needs the columns {SCHEMA.names}; this one lacks {missing}")
    for row in table.select(SCHEMA.names).to_pylist():
        yield _conversation(row)


def completed(table: pa.Table) -> pa.Table:
    """The table with all `OPTIONAL` columns, null if it lacks them."""
    for name in OPTIONAL:
        if name not in table.column_names:
            field = SCHEMA.field(name)
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def sources(table: pa.Table) -> list[str]:
    """The cluster of each row, for intervals: its source if it names one, else its context.

    `table` needs the columns environment, split and context_id; source may be missing.
    """
    columns = [completed(table)[name].to_pylist() for name in ("environment", "split", "context_id", "source")]
    return [source_name(*row) for row in zip(*columns, strict=True)]


def source_name(environment: str, split: str, context_id: str, source: str | None) -> str:
    """The name of a cluster of conversations that are not independent of each other."""
    return "/".join((environment, split, context_id) if source is None else (environment, source))


def _row(conversation: Conversation) -> dict[str, Any]:
    row = dict(vars(conversation))
    row["turns"] = [vars(turn) for turn in conversation.turns]
    row["context"] = json.dumps(conversation.context, sort_keys=True)
    row["metrics"] = json.dumps(conversation.metrics, sort_keys=True)
    return row


def _conversation(row: dict[str, Any]) -> Conversation:
    try:
        turns = [
            Turn(**{**turn, "role": Role(turn["role"]), "finish": Finish(turn["finish"]) if turn["finish"] else None})
            for turn in row["turns"]
        ]
        loaded = {"context": json.loads(row["context"]), "metrics": json.loads(row["metrics"])}
        return Conversation(**{**row, **loaded, "turns": turns, "stop": StopReason(row["stop"])})
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"conversation {row.get('id')!r} cannot be read: {error}") from error


def validate(conversation: Conversation) -> None:
    """Check that a conversation is as this module says. Raises DataError naming the conversation and the turn."""
    if not 0.0 <= conversation.score <= 1.0:
        raise DataError(f"conversation {conversation.id!r}: score is {conversation.score}; it has to be in [0, 1]")
    for index, turn in enumerate(conversation.turns):
        lengths: Sequence[int] = (len(turn.logprobs), len(turn.versions))
        allowed = (0, len(turn.tokens)) if turn.role == Role.AGENT else (0,)
        if any(length not in allowed for length in lengths):
            raise DataError(
                f"conversation {conversation.id!r}, turn {index} ({turn.role}): {len(turn.tokens)} tokens, but "
                f"{lengths[0]} log-probabilities and {lengths[1]} versions"
            )
        if not np.isfinite([turn.reward, *turn.logprobs]).all():
            raise DataError(
                f"conversation {conversation.id!r}, turn {index}: a reward or log-probability is not finite"
            )
