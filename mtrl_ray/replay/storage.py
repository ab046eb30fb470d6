"""One folder on any pyarrow filesystem, whose files are written whole or not at all.

On a local or distributed filesystem a file is written under a hidden name (`.NAME.writing`), synced if the filesystem can do
that, and renamed. On an object store a put is whole by itself. A write that fails leaves nothing behind and says which path,
why, and what would work. What a killed writer left is removed by a later one, once it is an hour old. A local file that turns
out to be damaged is set aside as `NAME.quarantined`; a remote one is left where it is.
"""

import errno
import logging
import os
import time
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from mtrl_ray.errors import ConfigurationError, EngineError, first_line

LOG = logging.getLogger(__name__)

ABANDONED_SECONDS = 3600.0
"""Age at which a hidden file of a writer that died is removed; nobody was told that its content was kept."""
QUARANTINED = ".quarantined"
"""Added to the name of a file that is set aside."""
OBJECT_STORES = ("s3", "gcs", "abfs")
"""pyarrow's filesystems whose files appear only when their upload is complete."""


def locate(uri: str | os.PathLike[str]) -> tuple[fs.FileSystem, str]:
    """The pyarrow filesystem and path of a local path or URI. Raises ConfigurationError if it cannot be opened."""
    text = os.fspath(uri)
    if "://" not in text:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text))
    try:
        return fs.FileSystem.from_uri(text)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigurationError(
            f"{text!r} is not a place pyarrow can open ({first_line(error)}); give a local path, or a URI it knows: "
            "file:///…, s3://…, gs://…, abfs://…, hdfs://…"
        ) from error


class Folder:
    """A flat folder of files. Made by the first write."""

    def __init__(self, uri: str | os.PathLike[str], filesystem: fs.FileSystem | None = None) -> None:
        """`uri`: a path or URI; with `filesystem`, a path on it."""
        self.uri = os.fspath(uri)
        self.filesystem, self.path = (filesystem, self.uri) if filesystem is not None else locate(uri)
        self.local = isinstance(self.filesystem, fs.LocalFileSystem)

    def at(self, name: str) -> str:
        """The path of a file of this folder."""
        return f"{self.path.rstrip('/')}/{name}"

    def files(self) -> list[fs.FileInfo]:
        """Files in the folder; empty if it does not exist. Raises EngineError if it cannot be listed."""
        try:
            infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        except OSError as error:
            raise EngineError(
                f"{self.uri} cannot be listed: {first_line(error)}; it has to be a reachable, readable folder"
            ) from error
        return [info for info in infos if info.type == fs.FileType.File]

    def put(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write one file, whole or not at all. Raises EngineError naming the path and the cause."""
        temporary = self.at(f".{name}.writing")
        try:
            self.filesystem.create_dir(self.path, recursive=True)
            if self.local:
                _write_synced(temporary, self.at(name), data)
            elif self.filesystem.type_name in OBJECT_STORES:
                self._stream(self.at(name), data)
            else:
                self._stream(temporary, data)
                self.filesystem.move(temporary, self.at(name))
        except OSError as error:
            self._discard(temporary)
            cause = "no space is left there" if error.errno == errno.ENOSPC else first_line(error)
            raise EngineError(
                f"{self.at(name)} could not be written: {cause}; free space or give permission, or name another folder "
                "or URI; nothing of this write was kept"
            ) from error

    def check_readable(self, name: str) -> None:
        """Read a file to its end: tells a damaged file from a filesystem that fails.

        Raises FileNotFoundError if it is gone, EngineError if the filesystem does not give its bytes.
        """
        try:
            with self.filesystem.open_input_file(self.at(name)) as source:
                source.read()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise EngineError(
                f"{self.at(name)} cannot be read: {first_line(error)}; it has to be reachable and readable from here"
            ) from error

    def quarantine(self, name: str) -> str:
        """Set a damaged file aside; returns what was done, as the end of a sentence."""
        if not self.local:
            return "it is skipped"
        try:
            os.replace(self.at(name), self.at(f"{name}{QUARANTINED}"))
        except OSError as error:
            return f"it is skipped, and could not be renamed: {first_line(error)}"
        return f"it is kept as {name}{QUARANTINED}"

    def remove_abandoned(self) -> None:
        """Remove temporary files of dead writers."""
        for info in self.files():
            age = time.time() - (info.mtime_ns or 0) / 1e9
            if info.base_name.startswith(".") and info.base_name.endswith(".writing") and age > ABANDONED_SECONDS:
                self._discard(info.path)

    def _discard(self, path: str) -> None:
        try:
            if self.filesystem.get_file_info(path).type == fs.FileType.File:
                self.filesystem.delete_file(path)
        except OSError as error:
            LOG.warning("%s is left over and cannot be removed: %s", path, first_line(error))

    def _stream(self, path: str, data: bytes | pa.Buffer) -> None:
        with self.filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(data)


def _write_synced(temporary: str, target: str, data: bytes | pa.Buffer) -> None:
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)
    sync(os.path.dirname(target))


def sync_all(folder: Path) -> None:
    """`sync` of a local folder and of everything in it."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: str | os.PathLike[str]) -> None:
    """Sync a local file, or the entries of a local folder, to disk, so that it survives a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
