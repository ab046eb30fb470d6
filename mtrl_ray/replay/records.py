"""Records of a log file: JSON, JSON lines, Parquet, CSV.

A record is a dictionary with the place it came from. A part that cannot be parsed becomes a `Record` with a fault, so that it
is quarantined and the rest is read; a file that cannot be parsed at all is a DataError that says where. With a `group`, rows
are messages: those of one conversation become one record, in the order of its first row. A bad row spoils its conversation,
because a conversation with a hole is not what was said.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mtrl_ray.errors import ConfigurationError, DataError, first_line
from mtrl_ray.replay.mapping import Mapping
from mtrl_ray.replay.paths import find
from mtrl_ray.replay.storage import locate

FORMATS = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".csv": "csv"}
CELL_CHARACTERS = 2**24
"""Longest CSV cell: a long message is not an error."""
MORE = "(cells beyond the last column)"
"""Where a CSV row keeps the cells that no column name belongs to."""


@dataclass(frozen=True)
class Record:
    """One record of a log: where it was found, its value, and, if it cannot be read, why.

    `cause`: under which such faults are counted.
    """

    place: str
    value: Any
    fault: str | None = None
    cause: str = "not a record"


def read_records(source: str, mapping: Mapping) -> Iterator[Record]:
    """The records of one file (path or URI), in order.

    Raises DataError if the file cannot be read or parsed at all, ConfigurationError if its format is unknown.
    """
    kind = mapping.format
    if kind == "auto":
        ending = next((ending for ending in FORMATS if source.lower().endswith(ending)), None)
        if ending is None:
            raise ConfigurationError(
                f"{source!r} has none of the endings {sorted(FORMATS)}; say in the mapping which `format` it is"
            )
        kind = FORMATS[ending]  # type: ignore[assignment]
    readers: dict[str, Callable[[str, bytes, Mapping], Iterator[Record]]] = {
        "json": _json,
        "jsonl": _json_lines,
        "parquet": _parquet,
        "csv": _csv,
    }
    records = readers[kind](source, _bytes(source), mapping)
    return _grouped(source, records, mapping) if mapping.group else records


def _bytes(source: str) -> bytes:
    filesystem, path = locate(source)
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:
            return stream.read()
    except OSError as error:
        raise DataError(f"the log {source!r} cannot be read: {first_line(error)}") from error


def _text(source: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"the log {source!r} is not UTF-8 at byte {error.start}; convert it first") from error


def _json(source: str, data: bytes, mapping: Mapping) -> Iterator[Record]:
    try:
        document = json.loads(_text(source, data))
    except (ValueError, RecursionError) as error:
        raise DataError(f"the log {source!r} is not JSON: {first_line(error)}") from error
    found = document if mapping.records is None else find(mapping.records, document)
    if not isinstance(found, list):
        where = "at its top" if mapping.records is None else f"at {mapping.records!r}"
        raise DataError(
            f"the log {source!r} has {type(found).__name__} {where}, where a list of records has to be; "
            "set `records` in the mapping"
        )
    for number, value in enumerate(found):
        yield _record(f"{source} record {number}", value)


def _json_lines(source: str, data: bytes, mapping: Mapping) -> Iterator[Record]:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        place = f"{source} line {number}"
        if not line.strip():
            continue
        try:
            yield _record(place, json.loads(line.decode("utf-8")))
        except (ValueError, RecursionError) as error:
            yield Record(place, line.decode("utf-8", "replace"), f"not JSON: {first_line(error)}")


def _parquet(source: str, data: bytes, mapping: Mapping) -> Iterator[Record]:
    try:
        batches = pq.ParquetFile(pa.BufferReader(data)).iter_batches()
        numbers = count()
        for batch in batches:
            for value in batch.to_pylist():
                yield _record(f"{source} row {next(numbers)}", value)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"the log {source!r} is not readable Parquet: {first_line(error)}") from error


def _csv(source: str, data: bytes, mapping: Mapping) -> Iterator[Record]:
    csv.field_size_limit(CELL_CHARACTERS)
    reader = csv.DictReader(io.StringIO(_text(source, data), newline=""), restkey=MORE, strict=True)
    while True:
        place = f"{source} line {reader.line_num + 1}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"the log {source!r} is not CSV from line {reader.line_num}: {error}") from error
        cells = sum(value is not None for name, value in row.items() if name != MORE) + len(row.get(MORE, ()))
        columns = len(reader.fieldnames or [])
        yield Record(place, row, None if cells == columns else f"{cells} cells under {columns} column names")


def _record(place: str, value: Any) -> Record:
    fault = None if isinstance(value, dict) else f"a record has to be an object, this is {type(value).__name__}"
    return Record(place, value, fault)


def _grouped(source: str, records: Iterator[Record], mapping: Mapping) -> Iterator[Record]:
    """One record per value of the column `mapping.group`."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        key = record.value.get(mapping.group) if isinstance(record.value, dict) else None
        if key is None or key == "":
            yield Record(record.place, record.value, record.fault or f"nothing in the column {mapping.group!r}")
        else:
            groups.setdefault(str(key), []).append(record)
    for key, rows in groups.items():
        fault = next((f"{row.place}: {row.fault}" for row in rows if row.fault), None)
        values = [row.value for row in rows]
        if mapping.order is not None and fault is None:
            values, fault = _ordered(values, mapping.order)
        merged: dict[str, Any] = {}
        for value in values:
            merged.update({name: cell for name, cell in value.items() if merged.get(name) in (None, "")})
        yield Record(f"{source} conversation {key}", {**merged, "messages": values}, fault)


def _ordered(rows: list[dict[str, Any]], column: str) -> tuple[list[dict[str, Any]], str | None]:
    """The rows by a column, as numbers if all of them are, else as text (ISO times sort as text)."""
    keys = [row.get(column) for row in rows]
    if any(key is None or key == "" for key in keys):
        return rows, f"a row has nothing in the column {column!r}, by which they are ordered"
    try:
        numbers = [float(key) for key in keys]  # type: ignore[arg-type]
        ranks: list[Any] = numbers
    except (TypeError, ValueError):
        ranks = [str(key) for key in keys]
    return [rows[index] for index in sorted(range(len(rows)), key=lambda index: ranks[index])], None
