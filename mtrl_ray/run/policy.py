"""The policy of a finished or interrupted run, as a model folder."""

from pathlib import Path

from mtrl_ray.errors import CheckpointError, ConfigurationError
from mtrl_ray.run.checkpoint_store import store_of
from mtrl_ray.settings.tree import TINY, Settings


def policy_folder(run: Path, settings: Settings, which: str = "newest") -> Path:
    """The model of a run (a folder; its `start` may be a name of the hub): of its newest intact checkpoint, of checkpoint
    `which` (a number), or of the `start`. Raises CheckpointError if there is none.
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
