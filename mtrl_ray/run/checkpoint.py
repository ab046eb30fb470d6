"""Checkpoints of a run: atomic folders with a manifest, verified when they are read.

A checkpoint is written to a scratch folder next to the others, synced, and renamed when it is complete, so a reader never sees
half of one. Older ones are removed once the new one's name is synced too: a power loss leaves one or the other.

`manifest.json` lists every file with its size and SHA-256. A checkpoint that has other files than these, or folders that hold
none of them, is refused with a sentence, and the one before is taken (`checkpoint_store`). State is safetensors, JSON, and
torch files read with `weights_only`: nothing in a checkpoint is executed.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mtrl_ray.errors import CheckpointError
from mtrl_ray.replay.storage import sync, sync_all

MANIFEST = "manifest.json"
STATE = "state.json"


def write(folder: Path, iteration: int, state: dict[str, Any], save: Callable[[Path], None], keep: int) -> Path:
    """Write checkpoint `iteration`: `save` puts models into the folder it is given, `state` becomes JSON beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    final, scratch = folder / f"{iteration:06d}", folder / f".{iteration:06d}.scratch"
    replaced = folder / f".{iteration:06d}.replaced"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        write_into(scratch, state, save)
        sync_all(scratch)
        if final.exists():
            final.rename(replaced)
        scratch.rename(final)
        sync(folder)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(
            error, OSError | RuntimeError | SafetensorError
        ):  # what Python, torch, safetensors say of a full disk
            reason = " ".join(str(getattr(error, "cause", error)).split())[:300]
            raise CheckpointError(
                f"checkpoint {final} could not be written: {reason}; the one before stays: free some space and resume"
            ) from error
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    for old in listed(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def write_into(folder: Path, state: dict[str, Any], save: Callable[[Path], None]) -> None:
    """The files of a checkpoint, the manifest last, into an existing folder."""
    save(folder)
    (folder / STATE).write_text(json.dumps(state, indent=1, sort_keys=True))
    manifest = {str(path.relative_to(folder)): _fingerprint(path) for path in _files(folder)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))


def read(path: Path) -> tuple[Path, dict[str, Any]]:
    """A checkpoint's folder, verified, and its state. Raises CheckpointError."""
    verify(path)
    try:
        state = json.loads((path / STATE).read_text())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path}: {STATE} is not JSON: {error}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {path}: {STATE} holds {type(state).__name__}, not a run's state")
    return path, state


def verify(path: Path) -> None:
    """Raises CheckpointError naming the first file or folder that is missing, torn, altered, or not the checkpoint's."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path} has no readable {MANIFEST}: {error}") from None
    if not isinstance(manifest, dict) or STATE not in manifest:
        raise CheckpointError(f"checkpoint {path}: {MANIFEST} does not list {STATE}, as every checkpoint's does")
    there = {str(file.relative_to(path)) for file in _files(path)}
    implied = {str(parent) for name in manifest for parent in Path(name).parents}
    folders = {str(found.relative_to(path)) for found in path.rglob("*") if found.is_dir()}
    strange = sorted((there - manifest.keys() - {MANIFEST}) | (folders - implied))
    if strange:
        raise CheckpointError(f"checkpoint {path} has {strange[0]}, which {MANIFEST} does not list")
    for name, expected in manifest.items():
        if name not in there:
            raise CheckpointError(f"checkpoint {path} lacks {name}")
        if _fingerprint(path / name) != expected:
            raise CheckpointError(f"checkpoint {path}: {name} is not what was written (size or checksum differ)")


def listed(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
