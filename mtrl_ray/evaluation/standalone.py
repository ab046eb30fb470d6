"""Evaluating a finished or interrupted run: its policy, from a checkpoint, against contexts of either split."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from mtrl_ray import checkpoint
from mtrl_ray.config import Settings
from mtrl_ray.errors import CheckpointError
from mtrl_ray.rollout.fleet import Fleet
from mtrl_ray.rollout.lease import make_leases
from mtrl_ray.weights.store import WeightStore, read_files


def policy_folder(run: Path, which: str = "newest") -> Path:
    """The model folder of a run: of its newest sound checkpoint, of checkpoint `which` (a number), or of the `start`."""
    if which == "start":
        if not (run / "model" / "config.json").is_file():
            raise CheckpointError(f"{str(run)!r} keeps no copy of the model it started from")
        return run / "model"
    if which != "newest":
        path = run / "checkpoints" / f"{int(which):06d}" if which.isdigit() else run / "checkpoints" / which
        checkpoint.verify(path)
        return path / "policy"
    found = checkpoint.newest(run / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"{str(run)!r} has no checkpoint yet; evaluate its start (--checkpoint start) or train on"
        )
    return found[0] / "policy"


def hold(settings: Settings, model: Path, split: str, contexts: int, tag: int = 0) -> pa.Table:
    """Conversations of the model with the first `contexts` contexts of a split; Ray has to be connected."""
    store: Any = ray.remote(WeightStore).options(num_cpus=0).remote()
    ray.get(store.keep_files.remote(read_files(str(model))))
    fleet = Fleet(settings, str(model), store)
    try:
        fleet.wait_ready()
        leases = make_leases(settings.run.seed, split, tag, range(contexts))
        tables = [ray.get(result.table[0]) for result in fleet.converse(leases, version=0)]
    finally:
        fleet.stop()
        ray.kill(store)
    return pa.concat_tables(tables).sort_by("id")
