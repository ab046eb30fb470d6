"""Conversations in Ray's object store, and the index by which they are found.

Added tables are joined into segments of about a MiB, one object each. The index has a row per conversation (id, iteration,
context, score, weight version, lengths), which says in which segment and row it lies. The index is in the order (iteration,
id), so its answers do not depend on the order of arrival.

`ray.put` makes the process that calls it the owner of an object. If the object of a segment is lost all the same (a node left
with the only copy), its conversations are asked of `restore` by id. So are conversations that are held without having been
there (`hold`, from the journal), when they are needed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError

from mtrl_ray.dialogue.conversation import SCHEMA
from mtrl_ray.errors import EngineError
from mtrl_ray.replay.columns import MEASURES, measures

SEGMENT_BYTES = 2**20
"""A segment smaller than this is joined with what is added next, so that many small additions stay few objects."""
INDEX = MEASURES.append(pa.field("segment", pa.int64())).append(pa.field("row", pa.int64()))


@dataclass
class Segment:
    """One table in the object store: its size in bytes, and the ids of its rows. Without a `ref` it is not there yet."""

    ref: ray.ObjectRef | None
    bytes: int
    ids: list[str]


class Memory:
    """The index and the segments. Not safe for threads; an actor runs one method at a time."""

    def __init__(self, restore: Callable[[list[str]], pa.Table], fetch_seconds: float) -> None:
        """`restore(ids)` gives these rows, in any order; `fetch_seconds`: how long to wait for an object."""
        self._restore, self._fetch_seconds = restore, fetch_seconds
        self._index, self._sorted = INDEX.empty_table(), True
        self._segments: dict[int, Segment] = {}
        self._next = 0
        self.ids: set[str] = set()
        self.restored = 0

    @property
    def index(self) -> pa.Table:
        """Rows of `INDEX`, one per conversation, ascending by (iteration, id)."""
        if not self._sorted:
            self._index = self._index.sort_by([("iteration", "ascending"), ("id", "ascending")]).combine_chunks()
            self._sorted = True
        return self._index

    @property
    def bytes(self) -> int:
        """Size of all segments in the object store, in bytes."""
        return sum(segment.bytes for segment in self._segments.values())

    @property
    def objects(self) -> int:
        """How many segments there are."""
        return len(self._segments)

    def add(self, table: pa.Table) -> None:
        """Hold these conversations (rows of `SCHEMA`, valid, none of them held already)."""
        if table.num_rows == 0:
            return
        self.ids.update(table["id"].to_pylist())
        number, start = self._next, 0
        last = self._segments.get(number - 1)
        if last is not None and last.bytes < SEGMENT_BYTES:
            number, start = number - 1, len(last.ids)
            table = pa.concat_tables([self._table(number), table])
        self._store(number, table)
        self._next = number + 1
        rows = np.arange(start, table.num_rows)
        entries = measures(table.slice(start)).append_column("segment", pa.array(np.full(len(rows), number)))
        self._index = pa.concat_tables([self._index, entries.append_column("row", pa.array(rows)).cast(INDEX)])
        self._sorted = False

    def hold(self, entries: pa.Table) -> None:
        """Hold these conversations (`catalogue.ENTRIES`, none of them held already) without reading them."""
        if entries.num_rows == 0:
            return
        entries = entries.sort_by([("iteration", "ascending"), ("id", "ascending")]).combine_chunks()
        ids, sizes = entries["id"].to_pylist(), entries["bytes"].to_numpy()
        _, starts, numbers = np.unique(
            (np.cumsum(sizes) - sizes) // SEGMENT_BYTES, return_index=True, return_inverse=True
        )
        ends = [*starts[1:].tolist(), len(ids)]
        for place, (start, end) in enumerate(zip(starts.tolist(), ends, strict=True)):
            self._segments[self._next + place] = Segment(None, int(sizes[start:end].sum()), ids[start:end])
        columns = {name: entries[name] for name in MEASURES.names}
        columns |= {"segment": numbers + self._next, "row": np.arange(len(ids)) - starts[numbers]}
        self._index = pa.concat_tables([self._index, pa.table(columns).cast(INDEX)])
        self._sorted = False
        self._next += len(starts)
        self.ids.update(ids)

    def gather(self, entries: pa.Table) -> pa.Table:
        """The conversations of these rows of the index, in their order, as one contiguous table."""
        numbers, which = np.unique(entries["segment"].to_numpy(), return_inverse=True)
        tables = self._tables(numbers.tolist())
        if not tables:
            return SCHEMA.empty_table()
        starts = np.cumsum([0, *(table.num_rows for table in tables[:-1])])
        return pa.concat_tables(tables).combine_chunks().take(pa.array(starts[which] + entries["row"].to_numpy()))

    def keep(self, marked: np.ndarray) -> pa.Table:
        """Hold on to the marked rows of the index only, bool [conversations]; returns the entries of the others.

        A segment that loses some of its rows is put anew without them, so that its bytes are really given back.
        """
        gone, index = self.index.filter(pa.array(~marked)), self.index.filter(pa.array(marked)).combine_chunks()
        segment, row = index["segment"].to_numpy(), index["row"].to_numpy().copy()
        for number in np.unique(gone["segment"].to_numpy()).tolist():
            here = segment == number
            kept = np.sort(row[here])
            if len(kept):
                self._shrink(number, kept)
                row[here] = np.searchsorted(kept, row[here])
            else:
                del self._segments[number]
        self._index = index.set_column(index.column_names.index("row"), INDEX.field("row"), pa.array(row))
        self.ids.difference_update(gone["id"].to_pylist())
        return gone

    def conversation_bytes(self) -> np.ndarray:
        """About how many bytes each conversation of the index takes, float [conversations]: its segment's mean."""
        mean = np.zeros(self._next)
        for number, segment in self._segments.items():
            mean[number] = segment.bytes / len(segment.ids)
        return mean[self.index["segment"].to_numpy()]

    def _store(self, number: int, table: pa.Table) -> None:
        table = table.combine_chunks()
        self._segments[number] = Segment(ray.put(table), table.nbytes, table["id"].to_pylist())

    def _shrink(self, number: int, kept: np.ndarray) -> None:
        """Only these rows of a segment remain, int [rows], ascending."""
        segment = self._segments[number]
        if segment.ref is None:
            size = segment.bytes * len(kept) // len(segment.ids)
            self._segments[number] = Segment(None, size, [segment.ids[place] for place in kept])
        else:
            self._store(number, self._table(number).take(pa.array(kept)))

    def _table(self, number: int) -> pa.Table:
        """A segment's table. Raises EngineError if it cannot be found anywhere."""
        return self._tables([number])[0]

    def _tables(self, numbers: list[int]) -> list[pa.Table]:
        """Segments' tables; those that are not in the object store are restored, all at once. Raises as `_table`."""
        found = {number: table for number in numbers if (table := self._fetched(number)) is not None}
        absent = [number for number in numbers if number not in found]
        names = [name for number in absent for name in self._segments[number].ids]
        restored = self._restore(names) if names else SCHEMA.empty_table()
        for number in absent:
            ids = self._segments[number].ids
            rows = pc.index_in(pa.array(ids, pa.string()), restored["id"].combine_chunks())
            if rows.null_count:
                raise EngineError(
                    f"{rows.null_count} of {len(ids)} conversations that the replay buffer holds are neither in the object "
                    "store nor in the journal; see the journal's problems, and set aside what is damaged there before the "
                    "run is resumed"
                )
            self.restored += len(ids) if self._segments[number].ref is not None else 0
            found[number] = restored.take(rows).combine_chunks()
            self._store(number, found[number])
        return [found[number] for number in numbers]

    def _fetched(self, number: int) -> pa.Table | None:
        """A segment's table, zero-copy; None if its object is not there."""
        ref = self._segments[number].ref
        try:
            return None if ref is None else ray.get(ref, timeout=self._fetch_seconds)
        except (ObjectLostError, GetTimeoutError):
            return None
