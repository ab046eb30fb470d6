"""Logs in two files: records of the second (outcomes, ratings) put into those of the first that they belong to."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mtrl_ray.errors import DataError
from mtrl_ray.replay.mapping import Join, Mapping
from mtrl_ray.replay.paths import Fault, find, nothing
from mtrl_ray.replay.records import Record, read_records


def joined_records(source: str, mapping: Mapping) -> Iterator[Record]:
    """The records of a log file, each with its record of every joined file under that join's name.

    One without a partner, or with several, has a fault. Raises DataError or ConfigurationError as `read_records` does.
    """
    partners = {name: _by_key(_place(source, join.file), join) for name, join in mapping.join.items()}
    for record in read_records(source, mapping):
        for name, known in partners.items():
            if record.fault is None:
                record = _with(record, name, mapping.join[name], known)
        yield record


def _by_key(source: str, join: Join) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    layout = Mapping(environment="joined", format=join.format, records=join.records)
    for record in read_records(source, layout):
        if record.fault is None and (key := find(join.key, record.value)) is not None:
            found.setdefault(str(key), []).append(record.value)
    if not found:
        raise DataError(f"join: the path {join.key!r} finds nothing in any record of {source!r}; name its key column")
    return found


def _with(record: Record, name: str, join: Join, known: dict[str, list[dict[str, Any]]]) -> Record:
    try:
        key = find(join.equals, record.value)
        if key is None:
            raise nothing(f"join.{name}.equals", join.equals)
        partners = known.get(str(key), [])
        if len(partners) != 1:
            raise Fault(f"not one record in {join.file!r} (join.{name})", f"{len(partners)} for {key!r}")
        if name in record.value:
            raise Fault(f"it has {name!r} already", "give the join another name")
    except Fault as fault:
        return replace(record, fault=str(fault).removeprefix(f"{fault.cause}: "), cause=fault.cause)
    return replace(record, value={**record.value, name: partners[0]})


def _place(source: str, file: str) -> str:
    """Path of a joined file: unchanged if absolute, else in the log's folder."""
    folder, slash, _ = source.rpartition("/")
    return file if "://" in file or file.startswith(("/", "~")) else f"{folder}{slash}{file}"
