"""Whole conversations as one batch: texts, sampled tokens, outcomes, and groups by context.

`Batch.read` takes a table of `conversation.SCHEMA`; conversations of one context and iteration are a group, of any size. Every
agent token has to carry its behaviour log-probability. Flat arrays are in the order of the table: per conversation, per agent
turn (those that have tokens), per agent token.

`Layout` holds the same as padded matrices without the user's tokens, [conversations, most agent tokens] and [conversations,
most turns]. The estimators take these: in them the agent's turns follow each other.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from mtrl_ray.dialogue.conversation import EXPECTED, GAIN, TURN_WEIGHTS, Role
from mtrl_ray.errors import DataError
from mtrl_ray.learner.rows.packing import Rows, turn_states, turn_tokens
from mtrl_ray.learner.rows.tables import Dialogues, Tables, as_table, starts_of


class Layout:
    """Agent tokens and agent turns as padded matrices, on one device.

    `mask`: bool [conversations, tokens]; `turn_index`: int64, same shape, 0 outside the mask; `present`: bool
    [conversations, turns].
    """

    def __init__(self, dialogues: Dialogues, device: torch.device) -> None:
        turns = dialogues.agent_turns
        conversation, lengths = dialogues.turn_conversation[turns], dialogues.turn_lengths[turns]
        counts = np.bincount(conversation, minlength=len(dialogues))
        tokens = np.bincount(conversation, weights=lengths, minlength=len(dialogues)).astype(np.int64)
        self.present = _filled(counts, device)
        self.mask = _filled(tokens, device)
        number = np.arange(len(turns)) - np.repeat(starts_of(counts)[:-1], counts)
        self.turn_index = torch.zeros(self.mask.shape, dtype=torch.int64, device=device)
        self.turn_index[self.mask] = torch.from_numpy(np.repeat(number, lengths)).to(device)

    @property
    def turns(self) -> int:
        """Most agent turns of a conversation."""
        return self.present.shape[1]

    def tokens(self, flat: Tensor) -> Tensor:
        """[agent tokens] to [conversations, tokens], zero if there is none."""
        return torch.zeros(self.mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter_(self.mask, flat)

    def of_turns(self, flat: Tensor) -> Tensor:
        """[agent turns] to [conversations, turns], zero if there is none."""
        return torch.zeros(self.present.shape, dtype=flat.dtype, device=flat.device).masked_scatter_(self.present, flat)


@dataclass(frozen=True)
class Batch:
    """See the module's docstring.

    `groups`: int64 [conversations]; `scores`: float32 [conversations], in [0, 1]; `words`: float32 [agent turns];
    `logprobs`: float32 [agent tokens], `versions`: int32, same; `weights`: float32 [agent turns], a judge's, or None;
    `gains`: float32 [agent turns], the gain of each in the user's record, zero without a record; `expected`: float32
    [conversations], the expected score according to the record, NaN if it does not say.
    """

    dialogues: Dialogues
    groups: np.ndarray
    scores: np.ndarray
    words: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    weights: np.ndarray | None
    gains: np.ndarray
    expected: np.ndarray

    @classmethod
    def read(cls, tables: Tables) -> "Batch":
        """The conversations of one or several tables. Raises DataError if one has no sampled agent tokens."""
        table = as_table(tables).combine_chunks()
        dialogues = Dialogues.read(table)
        logprobs, versions = dialogues.behaviour
        turns = pc.list_flatten(table["turns"]).combine_chunks()
        agent = turns.take(pa.array(dialogues.agent_turns))
        record = [json.loads(text) if _EXISTS in text else {} for text in table["metrics"].to_pylist()]
        return cls(
            dialogues=dialogues,
            groups=_groups(table),
            scores=table["score"].to_numpy(),
            words=_words(pc.struct_field(agent, "text")),
            logprobs=logprobs,
            versions=versions,
            weights=_judged(table, turns, dialogues) if TURN_WEIGHTS in table.column_names else None,
            gains=_gains(record, turns, dialogues),
            expected=np.array([one.get(EXPECTED, np.nan) for one in record], dtype=np.float32),
        )

    def __len__(self) -> int:
        return len(self.dialogues)

    @cached_property
    def rewards(self) -> np.ndarray:
        """The environment's reward of each agent turn, float32 [agent turns]."""
        return self.dialogues.rewards[self.dialogues.agent_turns]

    @cached_property
    def truncated(self) -> float:
        """Share of the agent turns that ended at the response's token limit."""
        return float(self.dialogues.truncated[self.dialogues.agent_turns].mean())

    def require_scores(self) -> None:
        """Raises DataError if the environment gives turn rewards but no score; for algorithms that learn only from scores."""
        if self.rewards.any() and not self.scores.any():
            raise DataError(
                f"the environment rewards turns, but all {len(self)} conversations have score 0, and scores are what is "
                "learned from here; let Outcome.score say what was achieved, or learn from rewards: itpo with rewards.scheme: "
                "environment, or iterative_ppo"
            )

    @cached_property
    def token_rows(self) -> Rows:
        """Conversations as chains, items are the agent's tokens."""
        return turn_tokens(self.dialogues)

    @cached_property
    def state_rows(self) -> Rows:
        """Conversations as chains, items are the agent's turns, each read at the state before it."""
        return turn_states(self.dialogues)

    @cached_property
    def turn_lengths(self) -> np.ndarray:
        """Tokens of each agent turn, int64 [agent turns]."""
        return self.dialogues.turn_lengths[self.dialogues.agent_turns]

    @cached_property
    def turn_conversation(self) -> np.ndarray:
        """The conversation of each agent turn, int64 [agent turns]."""
        return self.dialogues.turn_conversation[self.dialogues.agent_turns]

    @cached_property
    def token_conversation(self) -> np.ndarray:
        """The conversation of each agent token, int64 [agent tokens]."""
        return np.repeat(self.turn_conversation, self.turn_lengths)


def _filled(counts: np.ndarray, device: torch.device) -> Tensor:
    counts = torch.from_numpy(np.ascontiguousarray(counts)).to(device)
    width = int(counts.max()) if len(counts) else 0
    return torch.arange(width, device=device) < counts[:, None]


def _groups(table: pa.Table) -> np.ndarray:
    """A number for each (environment, iteration, split, context), int64 [conversations]."""
    names = [table[name].cast(pa.string()) for name in ("environment", "iteration", "split", "context_id")]
    joined = pc.binary_join_element_wise(*names, "\x1f").combine_chunks()
    return joined.dictionary_encode().indices.to_numpy().astype(np.int64)


def _words(texts: pa.Array) -> np.ndarray:
    """White-space separated words of each text, float32."""
    return np.array([len(text.split()) for text in texts.to_pylist()], dtype=np.float32)


def _with_tokens(turns: pa.Array, dialogues: Dialogues) -> np.ndarray:
    """Of all agent turns, those that have tokens: bool."""
    agent = np.flatnonzero(pc.equal(pc.struct_field(turns, "role"), Role.AGENT.value).to_numpy(zero_copy_only=False))
    return np.isin(agent, dialogues.agent_turns)


def _judged(table: pa.Table, turns: pa.Array, dialogues: Dialogues) -> np.ndarray:
    column = table[TURN_WEIGHTS].combine_chunks()
    counts = np.bincount(dialogues.turn_conversation[dialogues.agent], minlength=len(dialogues))
    wrong = np.flatnonzero(pc.fill_null(pc.list_value_length(column), -1).to_numpy() != counts)
    if len(wrong):
        name = dialogues.ids[int(wrong[0])].as_py()
        raise DataError(
            f"conversation {name!r} has {counts[wrong[0]]} agent turns; {TURN_WEIGHTS} gives another number"
        )
    flat = pc.list_flatten(column).to_numpy(zero_copy_only=False).astype(np.float32)[_with_tokens(turns, dialogues)]
    if not (np.isfinite(flat) & (flat >= 0)).all():
        raise DataError(f"{TURN_WEIGHTS} has weights that are negative or not finite; they have to be at least 0")
    return flat


_EXISTS = f'"{GAIN.format(0)}"'
"""Is in the metrics of a conversation whose user kept a record."""


def _gains(record: Sequence[dict[str, float]], turns: pa.Array, dialogues: Dialogues) -> np.ndarray:
    counts = np.bincount(dialogues.turn_conversation[dialogues.agent], minlength=len(dialogues))
    flat = np.zeros(int(counts.sum()), dtype=np.float32)
    starts = starts_of(counts)
    if any(record):
        for start, count, metrics in zip(starts, counts, record, strict=False):
            flat[start : start + count] = [metrics.get(GAIN.format(turn), 0.0) for turn in range(count)]
    return flat[_with_tokens(turns, dialogues)]


def lengths_of(batch: Batch, alike: str) -> np.ndarray | None:
    """Tokens of each of the parts that count alike: agent turns, conversations, or None for tokens. int64."""
    if alike == "token":
        return None
    if alike == "turn":
        return batch.turn_lengths
    return np.bincount(batch.token_conversation)[np.unique(batch.token_conversation)]
