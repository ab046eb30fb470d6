"""Conversations on their way into a table: one that cannot be kept becomes a failure with its cause, and no other's.

An environment may answer with anything: a reward that is no number, metrics that are no numbers, text that is none.
"""

from collections.abc import Sequence

import pyarrow as pa

from mtrl_ray.dialogue.conversation import Conversation, to_table, validate
from mtrl_ray.errors import DataError
from mtrl_ray.processes.failures import Failure


def sift(conversations: Sequence[Conversation]) -> tuple[pa.Table, list[Conversation], list[Failure]]:
    """The table of those that can be kept, ordered by id, they themselves, and why the others cannot."""
    kept: list[Conversation] = []
    failures: list[Failure] = []
    for done in sorted(conversations, key=lambda one: one.id):
        try:
            _check(done)
        except DataError as error:
            failures.append(Failure(done.id, DataError.__name__, str(error)))
        else:
            kept.append(done)
    try:
        return to_table(kept), kept, failures
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass
    tables, sound = [to_table([])], []
    for done in kept:
        try:
            tables.append(to_table([done]))
            sound.append(done)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            said = " ".join(str(error).split())[:300]
            failures.append(Failure(done.id, DataError.__name__, f"conversation {done.id!r} cannot be kept: {said}"))
    return pa.concat_tables(tables), sound, failures


def _check(conversation: Conversation) -> None:
    try:
        validate(conversation)
        numbers = conversation.metrics.items()
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"conversation {conversation.id!r} is malformed: {' '.join(str(error).split())[:300]}"
        ) from None
    wrong = [name for name, value in numbers if isinstance(value, bool) or not isinstance(value, int | float)]
    if wrong:
        raise DataError(
            f"conversation {conversation.id!r}: the environment's metric {wrong[0]!r} is {conversation.metrics[wrong[0]]!r}; "
            "metrics have to be numbers"
        )
