"""What the files of a journal hold, known without reading them again: ids, measures and bytes of their conversations.

`refresh` looks at the folder. A file that is not known is read whole, which checks it; one that is gone is forgotten. So going
back to a checkpoint reads nothing that is known. A process that takes the place of a lost one knows what that one noted
(`replay.lines`); what could not be noted is read again. A conversation counts once, by id: it lies in the earliest of the
files that have it.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrl_ray.dialogue.conversation import SCHEMA
from mtrl_ray.errors import EngineError
from mtrl_ray.replay.columns import MEASURES, measures
from mtrl_ray.replay.journal import Journal, JournalFile, once
from mtrl_ray.replay.lines import Lines

LOG = logging.getLogger(__name__)

ENTRIES = MEASURES.append(pa.field("bytes", pa.float64()))
"""A row per conversation; `bytes` are what it takes in memory: its file's mean."""


@dataclass(frozen=True)
class _Contents:
    file: JournalFile
    measures: pa.Table  # rows of MEASURES, in the file's order
    bytes: int  # of the whole table


class Catalogue:
    """See the module's docstring. Nothing is known before the first `refresh`."""

    def __init__(self, journal: Journal, notes: Lines) -> None:
        """`notes`: a file that has those of a process that was lost, and to which this one adds its own."""
        self._journal, self._notes = journal, notes
        self._contents: dict[str, _Contents] = {}
        for name, (size, columns) in notes.read():
            file = JournalFile.parse(name)
            if file is not None and columns.keys() == set(MEASURES.names):  # else noted by another version: read again
                self._contents[name] = _Contents(file, pa.Table.from_pydict(columns, schema=MEASURES), size)
        self.ids: dict[str, JournalFile] = {}
        """Each conversation's file."""

    @property
    def position(self) -> int:
        """The newest file's sequence number, 0 without one."""
        return max((contents.file.sequence for contents in self._contents.values()), default=0)

    def refresh(self) -> None:
        """Update the catalogue from the folder. Raises EngineError if it cannot be listed or read."""
        found: dict[str, _Contents] = {}
        for file in self._journal.files():
            contents = self._contents.get(file.name)
            if contents is None:
                table = self._journal.load(file)
                contents = None if table is None else self._noted(file, table)
            if contents is not None:
                found[file.name] = contents
        self._contents = found
        self._number()

    def append(self, table: pa.Table) -> None:
        """Write valid conversations that the journal does not have as one file. Raises the errors of `Journal.append`."""
        file = self._journal.append(table)
        self._contents[file.name] = self._noted(file, table)
        self.ids |= dict.fromkeys(table["id"].to_pylist(), file)

    def until(self, position: int | None) -> set[str]:
        """Ids in the files up to this sequence number (None: all)."""
        return {name for name, file in self.ids.items() if position is None or file.sequence <= position}

    def of(self, iteration: int) -> list[str]:
        """Ids of one iteration, in append order."""
        return [
            name
            for contents in self._contents.values()
            if contents.file.touches(range(iteration, iteration + 1))
            for name, its in zip(*(contents.measures[key].to_pylist() for key in ("id", "iteration")), strict=True)
            if its == iteration and self.ids[name] == contents.file
        ]

    def entries(self, ids: Iterable[str] | None = None) -> pa.Table:
        """Rows of `ENTRIES`, of these conversations (None: all) as far as they are there, in append order."""
        tables = [ENTRIES.empty_table()]
        for contents in self._contents.values():
            mean = np.full(contents.measures.num_rows, contents.bytes / max(contents.measures.num_rows, 1))
            tables.append(contents.measures.append_column(ENTRIES.field("bytes"), pa.array(mean)))
        table = once(pa.concat_tables(tables))
        return table if ids is None else table.filter(_among(table, ids))

    def rows(self, ids: Iterable[str]) -> pa.Table:
        """These conversations, read from the journal, in append order; those that it does not have any more are left out."""
        wanted = list(ids)
        tables = [SCHEMA.empty_table()]
        for file in sorted({self.ids[name] for name in wanted if name in self.ids}):
            table = self._journal.load(file)
            if table is None:
                self._contents.pop(file.name, None)
                self._number()
            else:
                tables.append(table)
        table = once(pa.concat_tables(tables))
        return table.filter(_among(table, wanted))

    def _noted(self, file: JournalFile, table: pa.Table) -> _Contents:
        contents = _Contents(file, measures(table), table.nbytes)
        try:
            self._notes.add(file.name, contents.bytes, contents.measures.to_pydict())
        except EngineError as error:
            LOG.warning("what %s holds is not noted: %s", file.name, error)
        return contents

    def _number(self) -> None:
        """Recompute the file of each conversation."""
        self.ids = {}
        for contents in self._contents.values():
            for name in contents.measures["id"].to_pylist():
                self.ids.setdefault(name, contents.file)


def _among(table: pa.Table, ids: Iterable[str]) -> pa.ChunkedArray:
    return pc.is_in(table["id"], pa.array(list(ids), pa.string()))
