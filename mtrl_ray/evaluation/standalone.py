"""Conversations of a model on contexts of either split, by a separate fleet."""

import logging
from pathlib import Path

import pyarrow as pa
import ray

from mtrl_ray.processes.waiting import fetch
from mtrl_ray.rollout.fleet import Fleet
from mtrl_ray.rollout.lease import make_leases
from mtrl_ray.settings.tree import Settings
from mtrl_ray.system.collection import evaluation_rollouts
from mtrl_ray.weights.store import read_files, start_store

logger = logging.getLogger(__name__)


def standalone_rollouts(settings: Settings, model: Path, split: str, contexts: int, tag: int = 0) -> pa.Table:
    """Conversations of the model with the first `contexts` contexts of a split; Ray has to be connected.

    Raises EngineError or DataError if too many could not be made (`failures`).
    """
    store = start_store()
    fetch(store.keep_files.remote(read_files(str(model))), "the weight store to take the model's files")
    fleet = Fleet(settings, str(model), store)
    try:
        fleet.wait_ready()
        leases = make_leases(settings.run.seed, split, tag, range(contexts))
        table, causes = evaluation_rollouts(fleet, leases, 0, settings.rollout)
    finally:
        fleet.stop()
        ray.kill(store)
    if causes:
        logger.warning("failures in the %d conversations asked for: %s", len(leases), causes)
    return table
