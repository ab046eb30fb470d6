"""The journal: an append-only folder of Parquet files that holds every finished conversation.

- One `append` is one file, there whole or not at all. An append that returned survives a crash.
- A file's name is its index: `SEQUENCE-FIRST-LAST-ROWS-TOKEN.parquet`, with the first and last iteration inside, and a random
  token that keeps two writers apart. Reading one iteration opens only the files that may have some of it.
- A conversation counts once, by id: of rows with the same id the earliest file's is returned.
- A file is checked whole when it is first read, and each of its rows too (`columns.faults`). One that does not hold valid
  conversations never ends a read and never disappears: it is set aside as `NAME.quarantined` (on remote filesystems it stays
  where it is), and `problems` says what is wrong with it.
- Files whose name is not a journal's are reported and not touched. Names that begin with `.` or `_` are ignored.
"""

import logging
import os
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from mtrl_ray.dialogue.conversation import OPTIONAL, SCHEMA, completed
from mtrl_ray.errors import DataError, EngineError, first_line
from mtrl_ray.replay.columns import faults
from mtrl_ray.replay.storage import QUARANTINED, Folder

LOG = logging.getLogger(__name__)

NAME = re.compile(r"(\d{10})-(\d{6,})-(\d{6,})-(\d{6,})-([0-9a-f]{8})\.parquet")
KNOWN = (SCHEMA, pa.schema([field for field in SCHEMA if field.name not in OPTIONAL], SCHEMA.metadata))
"""Schemas that a file may have: this version's, and version 0.1's."""
LISTINGS = 5
"""How often a read lists the folder anew when files go away under it (another reader sets them aside)."""


@dataclass(frozen=True, order=True)
class JournalFile:
    """Fields of a file's name. `first` and `last` are the least and greatest iteration inside."""

    sequence: int
    name: str
    first: int
    last: int
    rows: int

    @classmethod
    def parse(cls, name: str) -> "JournalFile | None":
        """None if the name is not a journal's."""
        match = NAME.fullmatch(name)
        if match is None:
            return None
        sequence, first, last, rows = (int(part) for part in match.groups()[:4])
        return cls(sequence, name, first, last, rows)

    def touches(self, iterations: range | None) -> bool:
        """Whether the file may hold rows of these iterations (None: any)."""
        return iterations is None or (self.first < iterations.stop and iterations.start <= self.last)


@dataclass(frozen=True)
class Position:
    """Position in the journal: files, rows written (doubles counted twice), and the last sequence number."""

    files: int
    rows: int
    sequence: int


class Journal:
    """Conversations in a folder of any pyarrow filesystem. One writer at a time is the rule; two do no harm."""

    def __init__(self, uri: str | os.PathLike[str], filesystem: fs.FileSystem | None = None) -> None:
        """`uri`: a path or URI; with `filesystem`, a path on it. Nothing is touched before the first append."""
        self.folder = Folder(uri, filesystem)
        self._next: int | None = None
        self._problems: dict[str, str] = {}
        self._checked: set[str] = set()

    @property
    def problems(self) -> list[str]:
        """One sentence per file met so far that is not readable as conversations."""
        return list(self._problems.values())

    @property
    def set_aside(self) -> list[str]:
        """Names of all files known to hold no valid conversations."""
        renamed = {name for info in self.folder.files() if (name := info.base_name).endswith(QUARANTINED)}
        left = {name for name in self._problems if JournalFile.parse(name) and f"{name}{QUARANTINED}" not in renamed}
        return sorted(renamed | left)

    @property
    def position(self) -> Position:
        """The journal's position, from its file names alone."""
        files = self.files()
        return Position(len(files), sum(file.rows for file in files), max((file.sequence for file in files), default=0))

    def files(self) -> list[JournalFile]:
        """The files of the journal, in append order."""
        files = []
        for info in self.folder.files():
            name = info.base_name
            if name.startswith((".", "_")) or name.endswith(QUARANTINED):
                continue
            file = JournalFile.parse(name)
            if file is None:
                self._report(name, f"{info.path} does not bear a journal file's name; it is skipped and left there")
            else:
                files.append(file)
        return sorted(files)

    def append(self, table: pa.Table) -> JournalFile:
        """Write the rows of `table` permanently as this file.

        Raises DataError if the table is empty or not of `SCHEMA`, EngineError if the filesystem refuses (a full
        disk, no permission): then nothing of it was kept, and the same call may be made again.
        """
        table = conform(table)
        if self._next is None:
            self.folder.remove_abandoned()
            self._next = self.position.sequence + 1
        file = self._write(table, self._next)
        self._next += 1
        return file

    def read(self, iterations: int | range | None = None, columns: list[str] | None = None) -> pa.Table:
        """Rows of these iterations (None: all) in append order, each id once; `columns`: of `SCHEMA`, None for all.

        Files that cannot be read are set aside and described in `problems`. Raises EngineError if the filesystem
        itself fails, since fewer rows than were kept is not an answer.
        """
        return self._read(iterations, columns)

    def ids(self, iteration: int | range | None = None) -> list[str]:
        """Ids in append order."""
        return self._read(iteration, ["id"])["id"].to_pylist()

    def rows(self, ids: Iterable[str]) -> pa.Table:
        """The rows with these ids, in append order; ids that are not there are left out."""
        table = self.read()
        return table.filter(pc.is_in(table["id"], pa.array(list(ids), pa.string())))

    def load(self, file: JournalFile) -> pa.Table | None:
        """The rows of one file, doubles too; None if it is gone, or cannot be read and is set aside (see `problems`)."""
        try:
            return self._load(file, SCHEMA.names)
        except FileNotFoundError:
            return None

    def _write(self, table: pa.Table, sequence: int) -> JournalFile:
        span = pc.min_max(table["iteration"]).as_py()
        if span["min"] < 0:
            raise DataError(f"a journal counts iterations from 0; a conversation has iteration {span['min']}")
        token = uuid.uuid4().hex[:8]
        name = f"{sequence:010d}-{span['min']:06d}-{span['max']:06d}-{table.num_rows:06d}-{token}.parquet"
        sink = pa.BufferOutputStream()
        try:
            pq.write_table(table, sink, compression="zstd", compression_level=1, write_page_checksum=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"conversations cannot be written as Parquet: {first_line(error)}") from error
        self.folder.put(name, sink.getvalue())
        return JournalFile(sequence, name, span["min"], span["max"], table.num_rows)

    def _read(self, iterations: int | range | None, columns: list[str] | None) -> pa.Table:
        wanted = _range(iterations)
        names = SCHEMA.names if columns is None else columns
        unknown = [name for name in names if name not in SCHEMA.names]
        if unknown:
            raise DataError(f"conversations have no column {unknown}; they have {SCHEMA.names}")
        loaded = [name for name in SCHEMA.names if name in names or name in ("id", "iteration")]
        empty = pa.schema([SCHEMA.field(name) for name in loaded], SCHEMA.metadata).empty_table()
        table = once(pa.concat_tables([empty, *self._load_all(wanted, loaded)]))
        if wanted is not None:
            iteration = table["iteration"]
            inside = pc.and_(pc.greater_equal(iteration, wanted.start), pc.less(iteration, wanted.stop))
            table = table.filter(inside)
        return table.select(names)

    def _load_all(self, wanted: range | None, columns: list[str]) -> list[pa.Table]:
        for _ in range(LISTINGS):
            files = [file for file in self.files() if file.touches(wanted)]
            try:
                tables = [self._load(file, columns) for file in files]
            except FileNotFoundError:
                continue
            return [table for table in tables if table is not None]
        raise EngineError(
            f"files of the journal {self.folder.uri} went away during each of {LISTINGS} reads; "
            "read it again when nobody removes files there"
        )

    def _load(self, file: JournalFile, columns: list[str]) -> pa.Table | None:
        path = self.folder.at(file.name)
        try:
            with (
                self.folder.filesystem.open_input_file(path) as source,
                pq.ParquetFile(source, page_checksum_verification=True) as parquet,
            ):
                schema = parquet.schema_arrow
                if not any(schema.equals(known) for known in KNOWN):
                    raise pa.ArrowInvalid("its columns are not those of a conversation")
                if file.name in self._checked:
                    return completed(parquet.read(columns=columns)).select(columns)
                table = completed(parquet.read())
            _check(table)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            self.folder.check_readable(file.name)
            outcome = self.folder.quarantine(file.name)
            self._report(file.name, f"{path} is not a readable file of conversations ({first_line(error)}); {outcome}")
            return None
        self._checked.add(file.name)
        return table.select(columns)

    def _report(self, name: str, sentence: str) -> None:
        if name not in self._problems:
            self._problems[name] = sentence
            LOG.warning("%s", sentence)


def conform(table: pa.Table) -> pa.Table:
    """`table` with exactly the columns of `SCHEMA`. Raises DataError if it is empty or not of conversations."""
    if not isinstance(table, pa.Table):
        raise DataError(f"a pyarrow table of conversations is needed; {type(table).__name__} was given")
    if table.num_rows == 0:
        raise DataError("a table without conversations was given to be kept; give at least one")
    table = completed(table)
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise DataError(f"a table of conversations needs the columns {SCHEMA.names}; this one lacks {missing}")
    table = table.select(SCHEMA.names)
    if table.schema.equals(SCHEMA):
        return table.replace_schema_metadata(SCHEMA.metadata)
    try:
        return table.cast(SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"a table of conversations has columns of another type: {first_line(error)}") from error


def _check(table: pa.Table) -> None:
    """Raises ArrowInvalid if text is no UTF-8, or a row no valid conversation."""
    table.validate(full=True)
    found = faults(table)
    if found:
        raise pa.ArrowInvalid(
            f"{len(found)} of its {table.num_rows} rows are not valid, the first: {min(found.items())[1]}"
        )


def once(table: pa.Table) -> pa.Table:
    """The first row of each id, in order."""
    if pc.count_distinct(table["id"]).as_py() == table.num_rows:
        return table
    numbered = pa.table({"id": table["id"], "row": np.arange(table.num_rows)})
    first = numbered.group_by("id").aggregate([("row", "min")])["row_min"]
    return table.take(np.sort(first.to_numpy()))


def _range(iterations: int | range | None) -> range | None:
    if isinstance(iterations, range) and iterations.step != 1:
        raise DataError(f"iterations are read in a range of step 1; {iterations} was given")
    return range(iterations, iterations + 1) if isinstance(iterations, int) else iterations
