"""Evaluating a finished or interrupted run: its policy, from a checkpoint, against contexts of either split."""

import logging
from pathlib import Path

import pyarrow as pa
import ray

from mtrl_ray.errors import CheckpointError, ConfigurationError
from mtrl_ray.models.tiny import TINY
from mtrl_ray.processes.waiting import fetch
from mtrl_ray.rollout.fleet import Fleet
from mtrl_ray.rollout.lease import make_leases
from mtrl_ray.run.checkpoint_store import store_of
from mtrl_ray.settings.tree import Settings
from mtrl_ray.system.collection import held_apart
from mtrl_ray.weights.store import read_files, start_store

logger = logging.getLogger(__name__)


def policy_folder(run: Path, settings: Settings, which: str = "newest") -> Path:
    """The model of a run (a folder; its `start` may be a name of the hub): of its newest sound checkpoint, of checkpoint
    `which` (a number), or of the `start`. Raises CheckpointError where there is none.
    """
    if which == "start":
        if settings.model.path != TINY:
            return Path(settings.model.path)
        if not (run / "model" / "config.json").is_file():
            raise CheckpointError(f"{str(run)!r} has not come so far as to make the model it starts from")
        return run / "model"
    store = store_of(settings)
    if which != "newest":
        if not which.isdecimal():
            raise ConfigurationError(f"--checkpoint {which}: give newest, start, or a number")
        numbers = store.numbers()
        if int(which) not in numbers:
            known = ", ".join(map(str, numbers)) or "none"
            raise CheckpointError(f"{str(run)!r} has no checkpoint {which}; it has: {known}")
        return store.fetch(int(which)) / "policy"
    found = store.newest()
    if found is None:
        raise CheckpointError(
            f"{str(run)!r} has no checkpoint yet; evaluate its start (--checkpoint start) or train on"
        )
    return found[0] / "policy"


def hold(settings: Settings, model: Path, split: str, contexts: int, tag: int = 0) -> pa.Table:
    """Conversations of the model with the first `contexts` contexts of a split; Ray has to be connected.

    Raises EngineError or DataError where too many could not be held (`failures`).
    """
    store = start_store()
    fetch(store.keep_files.remote(read_files(str(model))), "the weight store to take the model's files")
    fleet = Fleet(settings, str(model), store)
    try:
        fleet.wait_ready()
        leases = make_leases(settings.run.seed, split, tag, range(contexts))
        table, causes = held_apart(fleet, leases, 0, settings.rollout)
    finally:
        fleet.stop()
        ray.kill(store)
    if causes:
        logger.warning("failures in the %d conversations asked for: %s", len(leases), causes)
    return table
