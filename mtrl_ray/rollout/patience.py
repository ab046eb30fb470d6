"""Patience with workers that are missing: a note says what is missing, and a deadline ends the wait with the same sentence."""

import time
from collections.abc import Callable

import ray

from mtrl_ray.errors import EngineError
from mtrl_ray.rollout.worker_pool import START_SECONDS, Phase, WorkerPool
from mtrl_ray.settings.tree import RolloutSettings

SAY_SECONDS = 30.0
"""A note is made of a longer wait."""


class Patience:
    """The fleet's. `say`: told once per wait what is missing."""

    def __init__(self, pool: WorkerPool, rollout: RolloutSettings, say: Callable[[str], object]) -> None:
        self._pool, self._rollout, self._say = pool, rollout, say
        self._since: float | None = None
        self._said = False

    def update(self, *, stalled: bool) -> None:
        """Tell whether all work waits for workers. Raises EngineError if it has for `START_SECONDS`."""
        if not stalled:
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
        count, rollout = self._pool.count(), self._rollout
        others = ", ".join(f"{count[phase]} {phase}" for phase in Phase if phase is not Phase.READY and count[phase])
        have, free = ray.cluster_resources(), ray.available_resources()
        has = " and ".join(f"{have.get(name, 0):g} {name}s, {free.get(name, 0):g} free" for name in ("CPU", "GPU"))
        return (
            f"{count[Phase.READY]} of {self._pool.wanted} are ready ({others or 'none started'}); each takes "
            f"{rollout.cpus:g} CPUs and {rollout.gpus:g} GPUs; the cluster has {has}"
        )
