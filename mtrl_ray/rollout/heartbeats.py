"""Which workers make no progress although they have work: their engine samples nothing, or their process does not answer.

A worker that has work is asked for its progress every few seconds. This number changes with every sampled token, with every
user that answers, and as long as users are waited for within their own deadline (`rollout.loop`). A worker whose number has
not changed for `rollout.lease_seconds` is stalled. How long users take, and how many conversations there are, does not matter.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import ray
from ray.exceptions import RayError

from mtrl_ray.processes.refs import Ref
from mtrl_ray.rollout.worker_pool import PooledWorker

ASK_SECONDS = 5.0
"""Longest pause between two questions."""


@dataclass
class _Pulse:
    since: float  # the last progress that was noticed
    ask_at: float
    progress: int | None = None
    answer: Ref[int] | None = None


class Heartbeats:
    """The progress of the workers that have work. `seconds`: a worker without progress for so long is stalled."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._pulses: dict[int, _Pulse] = {}

    def stalled(self, working: Iterable[PooledWorker]) -> list[PooledWorker]:
        """Those of the workers with work that are stalled; the others are forgotten. To be called every second or so."""
        now = self._clock()
        workers = {worker.number: worker for worker in working}
        self._pulses = {number: self._pulses.get(number) or _Pulse(now, now) for number in workers}
        for number, pulse in self._pulses.items():
            self._ask(workers[number], pulse, now)
        return [worker for number, worker in workers.items() if now - self._pulses[number].since > self._seconds]

    def _ask(self, worker: PooledWorker, pulse: _Pulse, now: float) -> None:
        if pulse.answer is None:
            if now >= pulse.ask_at:
                pulse.answer = worker.actor.progress.remote()
            return
        if not ray.wait([pulse.answer], timeout=0)[0]:
            return
        try:
            progress: int | None = ray.get(pulse.answer)
        except RayError:  # its work fails too, and says why
            progress = None
        if progress is not None and progress != pulse.progress:
            pulse.since, pulse.progress = now, progress
        pulse.answer, pulse.ask_at = None, now + min(ASK_SECONDS, self._seconds / 4)
