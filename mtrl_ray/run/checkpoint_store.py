"""Where a run's checkpoints lie: in its folder, or on any pyarrow filesystem (`run.checkpoints`).

In the run's folder they are `checkpoints/000010`, as `checkpoint` writes them. Elsewhere they are `URI/RUN/000010`: a
checkpoint is made in the run's folder and its files are copied, the manifest last, because without one it is no checkpoint.
What is read is copied into the run's folder and verified there before anything opens it.

A checkpoint that is torn or altered, or that cannot be used although it is as it was written, is refused with a sentence, and
the one before is taken, wherever it lies. A filesystem that does not answer is an `EngineError`: it is no reason to take an
older one.
"""

import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyarrow import fs

from mtrl_ray.errors import CheckpointError, EngineError, first_line
from mtrl_ray.processes.failures import root_cause
from mtrl_ray.replay.storage import Folder, locate, sync, sync_all
from mtrl_ray.run import checkpoint
from mtrl_ray.settings.tree import Settings

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
SCRATCH = ".checkpoint"
"""In the run's folder: a checkpoint on its way to or from another filesystem."""


class CheckpointStore(ABC):
    """Checkpoints by iteration."""

    @abstractmethod
    def numbers(self) -> list[int]:
        """Iterations that have a checkpoint, ascending; whether it is valid is not known. Raises EngineError."""

    @abstractmethod
    def fetch(self, number: int) -> Path:
        """A verified checkpoint as a local folder, good until the next call. Raises CheckpointError, EngineError."""

    @abstractmethod
    def write(self, number: int, state: dict[str, Any], save: Callable[[Path], None], keep: int) -> None:
        """See `checkpoint.write`. Raises CheckpointError if it cannot be written; the former ones then stay."""

    @abstractmethod
    def clear(self) -> None:
        """Remove them all. Raises EngineError."""

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest valid checkpoint and its state; None if there is none at all. Raises as `restore`."""
        found: list[tuple[Path, dict[str, Any]]] = []
        self.restore(lambda folder, state: found.append((folder, state)))
        return found[0] if found else None

    def restore(self, use: Callable[[Path, dict[str, Any]], object]) -> bool:
        """Hand the newest checkpoint to `use`, and the one before if it is broken or `use` raises CheckpointError.

        False if there is none at all. Raises CheckpointError if none of them can be used.
        """
        problems = []
        for number in reversed(self.numbers()):
            try:
                use(*checkpoint.read(self.fetch(number)))
            except Exception as error:
                cause = root_cause(error)  # an actor's error comes in Ray's wrappers
                if not isinstance(cause, CheckpointError):
                    raise
                problems.append(str(cause))
                logger.warning("%s; trying the one before", problems[-1])
            else:
                return True
        if problems:
            raise CheckpointError(f"no checkpoint in {self} can be used: {problems[0]}")
        return False


def store_of(settings: Settings) -> CheckpointStore:
    """Where the checkpoints of a run lie. Raises ConfigurationError for a place that pyarrow cannot open."""
    where, run = settings.run.checkpoints, settings.run_folder
    if where is None:
        return LocalStore(run / FOLDER)
    filesystem, path = locate(where)
    return RemoteStore(filesystem, f"{path.rstrip('/')}/{settings.run.name}", run / SCRATCH, where)


class LocalStore(CheckpointStore):
    """A folder on this machine, or on a disk that all machines share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def numbers(self) -> list[int]:
        """See `CheckpointStore.numbers`."""
        return [int(path.name) for path in checkpoint.listed(self._folder)]

    def fetch(self, number: int) -> Path:
        """See `CheckpointStore.fetch`."""
        return checkpoint.read(self._folder / f"{number:06d}")[0]

    def write(self, number: int, state: dict[str, Any], save: Callable[[Path], None], keep: int) -> None:
        """See `CheckpointStore.write`."""
        checkpoint.write(self._folder, number, state, save, keep)

    def clear(self) -> None:
        """See `CheckpointStore.clear`."""
        shutil.rmtree(self._folder, ignore_errors=True)


class RemoteStore(CheckpointStore):
    """A folder of a pyarrow filesystem; `uri` is named in sentences."""

    def __init__(self, filesystem: fs.FileSystem, path: str, scratch: Path, uri: str) -> None:
        self._filesystem, self._path, self._scratch, self._uri = filesystem, path, scratch, uri

    def __str__(self) -> str:
        return f"{self._uri} ({self._path})"

    def numbers(self) -> list[int]:
        """See `CheckpointStore.numbers`."""
        try:
            infos = self._filesystem.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
        except OSError as error:
            raise EngineError(f"checkpoints in {self} cannot be listed: {first_line(error)}") from error
        folders = [info.base_name for info in infos if info.type == fs.FileType.Directory]
        return sorted(int(name) for name in folders if name.isdecimal())

    def fetch(self, number: int) -> Path:
        """See `CheckpointStore.fetch`."""
        target = self._scratch / f"{number:06d}"
        shutil.rmtree(self._scratch, ignore_errors=True)
        target.mkdir(parents=True)
        try:
            fs.copy_files(self._at(number), str(target), self._filesystem, fs.LocalFileSystem())
        except OSError as error:
            raise EngineError(f"checkpoint {self._at(number)} cannot be fetched: {first_line(error)}") from error
        return checkpoint.read(target)[0]

    def write(self, number: int, state: dict[str, Any], save: Callable[[Path], None], keep: int) -> None:
        """See `CheckpointStore.write`."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        made = checkpoint.write(self._scratch, number, state, save, keep=1)
        manifest = (made / checkpoint.MANIFEST).read_bytes()
        (made / checkpoint.MANIFEST).unlink()
        try:
            self._remove(number)
            self._filesystem.create_dir(self._at(number), recursive=True)
            fs.copy_files(str(made), self._at(number), fs.LocalFileSystem(), self._filesystem)
            at = Folder(self._at(number), self._filesystem)
            if at.local:
                sync_all(Path(at.path))
            at.put(checkpoint.MANIFEST, manifest)
            if at.local:
                sync(self._path)
            for old in self.numbers()[:-keep]:
                self._remove(old)
        except (OSError, EngineError) as error:
            raise CheckpointError(
                f"checkpoint {self._at(number)} could not be written: {first_line(error)}; the one before stays: see to "
                f"{self._uri} and resume"
            ) from error
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def clear(self) -> None:
        """See `CheckpointStore.clear`."""
        try:
            for number in self.numbers():
                self._remove(number)
        except OSError as error:
            raise EngineError(f"checkpoints in {self} cannot be removed: {first_line(error)}") from error

    def _at(self, number: int) -> str:
        return f"{self._path}/{number:06d}"

    def _remove(self, number: int) -> None:
        """The manifest first, so that half of one is none."""
        if self._filesystem.get_file_info(self._at(number)).type != fs.FileType.Directory:
            return
        manifest = f"{self._at(number)}/{checkpoint.MANIFEST}"
        if self._filesystem.get_file_info(manifest).type == fs.FileType.File:
            self._filesystem.delete_file(manifest)
        self._filesystem.delete_dir(self._at(number))
