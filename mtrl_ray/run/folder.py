"""A run's folder at its start: made for a new run, read for one that goes on.

`config.yaml` holds the resolved settings and the version that wrote them, `command.txt` the command that made the run.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mtrl_ray.errors import CheckpointError, ConfigurationError
from mtrl_ray.monitoring.contents import COMMAND
from mtrl_ray.run.checkpoint_store import store_of
from mtrl_ray.run.lock import LOCK
from mtrl_ray.run.recipes import apply, dump, validate
from mtrl_ray.settings.migration import VERSION, migrate
from mtrl_ray.settings.tree import TINY, Settings
from mtrl_ray.settings.version import __version__

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
FIXED = ("run.name", "run.folder", "run.seed", "environment", "model", "algorithm.name")
"""Settings that a run keeps for its whole life: its conversations and checkpoints depend on them."""


def prepare(settings: Settings, fresh: bool, command: str) -> None:
    """Make the run's folder and write settings and command into it. What a start that failed left is replaced.

    Raises ConfigurationError if it is taken, if the disk refuses, or if the model's folder does not exist.
    """
    folder = settings.run_folder
    _check_model(settings.model.path)
    store = store_of(settings)
    if _begun(folder) or store.numbers():
        if not fresh:
            raise ConfigurationError(
                f"the run {str(folder)!r} exists; resume it (mtrl train --resume {folder}), choose another run.name, "
                "or replace it (--fresh)"
            )
        store.clear()
        _empty(folder)
    elif (folder / CONFIG).exists():  # of a start that failed
        _empty(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / COMMAND).write_text(f"{command}\n")
    except OSError as error:
        raise ConfigurationError(
            f"run.folder: {str(folder)!r} cannot be made ({error.strerror}); name a folder that can be written"
        ) from None
    write_settings(settings)


def write_settings(settings: Settings) -> None:
    """Write the resolved settings and this version into the run's folder, in one step."""
    path = settings.run_folder / CONFIG
    temporary = path.with_name(f".{CONFIG}.writing")
    temporary.write_text(f"{VERSION}: {__version__}\n{dump(settings)}")
    temporary.replace(path)


def written_settings(folder: Path) -> dict[str, Any]:
    """The settings of an existing run as plain values, brought to this version; neither its environment nor its secrets are
    needed, and the folder may have been moved.

    Raises CheckpointError if the folder is not a run, or is one that this version cannot continue.
    """
    path = folder / CONFIG
    try:
        tree: dict[str, Any] = yaml.safe_load(path.read_text())
        tree["run"] |= {"folder": str(folder.absolute().parent), "name": folder.absolute().name}
    except OSError as error:
        raise CheckpointError(f"{str(folder)!r} is not a run: its {CONFIG} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, TypeError, KeyError, ValueError):
        raise CheckpointError(f"{str(path)!r} is torn: it does not hold a run's settings") from None
    for note in migrate(tree, str(path), __version__):
        logger.warning("%s: %s", path, note)
    return tree


def resumed_settings(folder: Path, overrides: Sequence[str] = ()) -> Settings:
    """The settings of an existing run, with overrides; the folder may have been moved.

    Raises CheckpointError if the folder is not a run, ConfigurationError for an override of what a run keeps.
    """
    tree = written_settings(folder)
    before = validate(tree, str(folder / CONFIG))
    for override in overrides:
        apply(tree, override)
    settings = validate(tree, " ".join(overrides)) if overrides else before
    for key in FIXED:
        old, new = (_setting(one, key) for one in (before, settings))
        if old != new:
            raise ConfigurationError(
                f"{key} is {old!r} in the run {str(folder)!r} and stays so; start a new run to change it"
            )
    return settings


def _begun(folder: Path) -> bool:
    """Whether the folder holds something of a run: a conversation, an evaluation, a checkpoint."""
    return any(any((folder / name).glob("*")) for name in ("journal", "checkpoints", "evaluation"))


def _empty(folder: Path) -> None:
    """Remove what is in the folder, except the lock that this process may hold."""
    for entry in folder.iterdir() if folder.exists() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def _setting(settings: Settings, key: str) -> Any:
    node: Any = settings.model_dump(mode="json")
    for name in key.split("."):
        node = node.get(name)
    return node


def _check_model(path: str) -> None:
    """A path that can only be a folder has to be one; anything else may be a name of the hub."""
    if path != TINY and path.startswith(("/", ".", "~")) and not Path(path).is_dir():
        raise ConfigurationError(
            f"model.path is {path!r}, and there is no such folder; give a Hugging Face model folder, a name of the hub, "
            f"or {TINY!r}"
        )
