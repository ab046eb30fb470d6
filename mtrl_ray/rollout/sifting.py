"""Conversations on their way into a table: one that the replay buffer would refuse fails with its cause, and no other does.

An environment may answer with anything: a reward that is not a 32-bit number, metrics that are not numbers, text that
is not a string, an unknown stop reason. The check is the buffer's own (`replay.columns.faults`), made here, where a
conversation can fail by itself.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mtrl_ray.dialogue.conversation import Conversation, to_table
from mtrl_ray.errors import DataError
from mtrl_ray.processes.failures import Failure
from mtrl_ray.replay.columns import faults

UNREADABLE = (pa.ArrowException, AttributeError, TypeError, ValueError, OverflowError, RecursionError)
"""What a conversation raises that is of other types than a table's."""


def sift(conversations: Sequence[Conversation]) -> tuple[pa.Table, list[Conversation], list[Failure]]:
    """The table of valid conversations, ordered by id; these conversations; and why the others are invalid."""
    ordered = sorted(conversations, key=lambda one: one.id)
    failures = {done.id: fault for done in ordered if (fault := _wrong_metric(done)) is not None}
    table, fitting = _table([done for done in ordered if done.id not in failures], failures)
    wrong = faults(table)
    failures |= {fitting[row].id: said for row, said in wrong.items()}
    table = table.filter(pa.array(np.isin(np.arange(table.num_rows), list(wrong), invert=True)))
    kept = [done for done in fitting if done.id not in failures]
    return table, kept, [Failure(name, DataError.__name__, said) for name, said in failures.items()]


def _table(conversations: list[Conversation], failures: dict[str, str]) -> tuple[pa.Table, list[Conversation]]:
    """The table of those that fit into one, and they themselves; why the others do not goes into `failures`."""
    try:
        return to_table(conversations), conversations
    except UNREADABLE:
        pass
    tables, fitting = [to_table([])], []
    for done in conversations:
        try:
            tables.append(to_table([done]))
            fitting.append(done)
        except UNREADABLE as error:
            said = " ".join(str(error).split())[:300]
            failures[done.id] = f"conversation {done.id!r} is malformed and cannot be kept: {said}"
    return pa.concat_tables(tables), fitting


def _wrong_metric(done: Conversation) -> str | None:
    if not isinstance(done.metrics, dict):
        return f"conversation {done.id!r}: the environment's metrics are {done.metrics!r}; they have to be a dictionary"
    for name, value in done.metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            return (
                f"conversation {done.id!r}: the environment's metric {name!r} is {value!r}; metrics have to be numbers"
            )
    return None
