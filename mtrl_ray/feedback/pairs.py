"""Pairs of conversations that people compared, read from a file (JSON lines, JSON, Parquet; a path or URI).

1. A record has `first`, `second` and `preference`. A side is the id of a conversation of a journal, or a conversation
   itself: `{messages: [{role, content}, …]}`, optionally with `id`, `context_id` and `score`, read as by `mtrl import`.
2. `preference` is how sure it is that the first is better: a number from 0 to 1, or `first`, `second`, `tie`.
   Optional: `context_id` and `environment` (of conversations in the record that do not say), and `judge`, who compared.
3. The two sides are different conversations of one environment on one context. Sides without a context are on the
   pair's. Several judgements of one pair are several pairs.
4. Every mistake is one sentence that says where it is. `load_pairs` gives them beside the valid pairs; `read_pairs` is
   for files that must have none, and raises at the first.
5. A conversation in the record without a score has score 0; what learns from pairs reads no scores.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mtrl_ray.dialogue.conversation import Conversation, from_table
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.replay.journal import Journal
from mtrl_ray.replay.mapping import Mapping as Meaning
from mtrl_ray.replay.reading import read_conversation
from mtrl_ray.replay.records import Record, read_records

VERDICTS = {"first": 1.0, "second": 0.0, "tie": 0.5}
REQUIRED = ("first", "second", "preference")
OPTIONAL = ("context_id", "environment", "judge")
ENVIRONMENT = "pairs"
"""Environment of conversations in a record that names none."""


@dataclass(frozen=True)
class Pair:
    """Two finished conversations on the same context, and P(first ≻ second) as `judge` gave it."""

    first: Conversation
    second: Conversation
    preference: float
    judge: str = ""


@dataclass(frozen=True)
class PairFile:
    """What a file holds: its valid pairs, in order, and one sentence per mistake."""

    pairs: list[Pair]
    mistakes: list[str]


def read_pairs(source: str, journal: Journal | None = None) -> list[Pair]:
    """All pairs of a file without mistakes; `journal` holds the conversations that are named by id.

    Raises DataError with the first mistake's sentence and the number of the others, and if there is no pair.
    """
    found = load_pairs(source, journal)
    if found.mistakes:
        others = len(found.mistakes) - 1
        raise DataError(found.mistakes[0] + (f" (and {others} more mistakes in this file)" if others else ""))
    if not found.pairs:
        raise DataError(f"{source!r} holds no pairs; it needs records with {', '.join(REQUIRED)}")
    return found.pairs


def load_pairs(source: str, journal: Journal | None = None) -> PairFile:
    """The valid pairs of a file, and its mistakes. Raises DataError if the file as a whole cannot be read."""
    records = list(read_records(source, Meaning(environment=ENVIRONMENT)))
    known = None if journal is None else _logged(records, journal)
    pairs, mistakes = [], []
    for record in records:
        try:
            pairs.append(_pair(record, known))
        except (DataError, ConfigurationError) as error:
            mistakes.append(f"{record.place}: {error}")
    return PairFile(pairs, mistakes)


def _logged(records: list[Record], journal: Journal) -> dict[str, Conversation]:
    """The journal's conversations that records name by id."""
    ids = {side for record in records for side in _sides(record) if isinstance(side, str)}
    return {conversation.id: conversation for conversation in from_table(journal.rows(ids))} if ids else {}


def _sides(record: Record) -> Iterator[Any]:
    if record.fault is None:
        yield from (record.value.get(key) for key in ("first", "second"))


def _pair(record: Record, known: Mapping[str, Conversation] | None) -> Pair:
    if record.fault is not None:
        raise DataError(record.fault)
    value = {key: part for key, part in record.value.items() if part is not None}
    missing = [key for key in REQUIRED if key not in value]
    unknown = sorted(set(value) - {*REQUIRED, *OPTIONAL})
    if missing or unknown:
        fault = f"{missing[0]} is missing" if missing else f"{unknown[0]!r} is no key of a pair"
        raise DataError(f"{fault}; a pair has {', '.join(REQUIRED)} and may have {', '.join(OPTIONAL)}")
    context_id = str(value.get("context_id", record.place))
    environment = str(value.get("environment", ENVIRONMENT))
    first, second = (_side(key, value[key], known, environment, context_id) for key in ("first", "second"))
    _check(first, second)
    return Pair(first, second, _preference(value["preference"]), str(value.get("judge", "")))


def _side(
    key: str, given: Any, known: Mapping[str, Conversation] | None, environment: str, context_id: str
) -> Conversation:
    if isinstance(given, str):
        if known is None or given not in known:
            where = "named by its id, which needs a journal" if known is None else "not in the journal"
            raise DataError(f"{key}: the conversation {given!r} is {where}")
        return known[given]
    if not isinstance(given, dict):
        raise DataError(
            f"{key} is {type(given).__name__}; it has to be a conversation's id, or an object with messages"
        )
    said = {name: part for name, part in given.items() if part is not None}
    defaults = {"id": _digest(said), "context_id": context_id, "score": 0.0}
    meaning = Meaning(environment=environment, id="id", context_id="context_id", held_out=0.0)  # a pair names no split
    try:
        return read_conversation(defaults | said, meaning)
    except DataError as error:
        raise DataError(f"{key}: {error}") from error


def _check(first: Conversation, second: Conversation) -> None:
    if first.id == second.id:
        raise DataError(f"first and second are the same conversation {first.id!r}; a pair has two different ones")
    if first.environment != second.environment:
        raise DataError(
            f"first is of environment {first.environment!r}, second of {second.environment!r}; a pair has one environment"
        )
    if (first.split, first.context_id) != (second.split, second.context_id):
        raise DataError(
            f"first is on context {first.context_id!r}, second on {second.context_id!r}; only conversations on the same "
            "context can be compared"
        )


def _preference(given: Any) -> float:
    try:
        number = VERDICTS[given] if given in VERDICTS else float(given)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(given, bool) or not 0.0 <= number <= 1.0:
        raise DataError(f"preference is {given!r}; it has to be a number from 0 to 1, or one of {', '.join(VERDICTS)}")
    return number


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()
