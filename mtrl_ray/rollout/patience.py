"""Waiting for workers: what is missing is said after a while, and at a deadline the wait ends with the same sentence."""

import time
from collections.abc import Callable

import ray

from mtrl_ray.errors import EngineError
from mtrl_ray.rollout.members import START_SECONDS, Members, Phase
from mtrl_ray.settings.tree import RolloutSettings

SAY_SECONDS = 30.0
"""A wait that is longer is said."""


class Patience:
    """Of the fleet, with its workers. `say`: told once in each wait what is missing."""

    def __init__(self, members: Members, rollout: RolloutSettings, say: Callable[[str], object]) -> None:
        self._members, self._rollout, self._say = members, rollout, say
        self._since: float | None = None
        self._said = False

    def look(self, waiting: bool) -> None:
        """Nothing goes on but waiting for workers, or something does. Raises EngineError `START_SECONDS` after it did last."""
        if not waiting:
            self._since, self._said = None, False
            return
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since >= START_SECONDS:
            raise EngineError(f"waited {START_SECONDS:.0f} s for rollout workers: {self._missing()}")
        if now - self._since >= SAY_SECONDS and not self._said:
            self._said = True
            self._say(f"waiting for rollout workers: {self._missing()}")

    def _missing(self) -> str:
        count, rollout = self._members.count(), self._rollout
        others = ", ".join(f"{count[phase]} {phase}" for phase in Phase if phase is not Phase.READY and count[phase])
        have, free = ray.cluster_resources(), ray.available_resources()
        has = " and ".join(f"{have.get(name, 0):g} {name}s, {free.get(name, 0):g} free" for name in ("CPU", "GPU"))
        return (
            f"{count[Phase.READY]} of {self._members.wanted} are ready ({others or 'none started'}); each takes "
            f"{rollout.cpus:g} CPUs and {rollout.gpus:g} GPUs; the cluster has {has}"
        )
