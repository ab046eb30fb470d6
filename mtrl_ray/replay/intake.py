"""Tables on their way into the buffer: fetched from the object store, conformed to the schema, checked row by row.

A table that cannot be fetched (its owner died, the task that makes it failed, it comes too late) is named with its cause, and
the others are taken. A row that is not a valid conversation is refused with a sentence, and the others of its table are taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError

from mtrl_ray.dialogue.conversation import SCHEMA
from mtrl_ray.errors import DataError, first_line
from mtrl_ray.processes.failures import root_cause
from mtrl_ray.replay.columns import faults
from mtrl_ray.replay.journal import conform


@dataclass(frozen=True)
class Received:
    """The valid conversations, a sentence per refused one, and the cause for each position in `refs` that was lost."""

    table: pa.Table
    refused: list[str]
    lost: dict[int, str]


def receive(refs: Sequence[ray.ObjectRef], seconds: float) -> Received:
    """Fetch and check the tables behind `refs`, waiting at most `seconds` for each."""
    fetched, lost = _fetch(list(refs), seconds)
    tables, refused = [SCHEMA.empty_table()], []
    for position, table in fetched.items():
        try:
            if not isinstance(table, pa.Table) or table.num_rows:
                tables.append(conform(table))
        except DataError as error:
            refused.append(f"table {position}: {error}")
    table = pa.concat_tables(tables).combine_chunks()
    invalid = faults(table)
    if invalid:
        valid = np.ones(table.num_rows, dtype=bool)
        valid[list(invalid)] = False
        table = table.filter(pa.array(valid)).combine_chunks()
    return Received(table, [*refused, *invalid.values()], lost)


def _fetch(refs: list[ray.ObjectRef], seconds: float) -> tuple[dict[int, pa.Table], dict[int, str]]:
    """The tables by position, and the cause for each position whose table cannot be had."""
    try:
        return dict(enumerate(ray.get(refs, timeout=seconds))), {}
    except RayError:
        fetched, lost = {}, {}
    for position, ref in enumerate(refs):
        try:
            fetched[position] = ray.get(ref, timeout=seconds)
        except RayError as error:
            cause = root_cause(error)
            lost[position] = f"{type(cause).__name__}: {first_line(cause)}"
    return fetched, lost
