"""How many rollout workers a run can use: a pure function of its last iterations.

In an iteration of T seconds there is rollout work (conversations, responses) for R seconds, and for W ≤ R of them the
learner is idle. In the other T - R seconds the workers wait for the learner.

1. With m workers instead of n, W becomes W·n/m: the iteration is shorter by W·(1 - n/m). A worker is added if it shortens
   the iteration by at least `WORTH_HAVING` of its length and by `scale_up_seconds`.
2. Without the n-th worker the iteration is longer by at most R·(n/(n-1) - 1). It is removed if that is less than
   `WORTH_KEEPING` of the iteration, or than `scale_down_seconds`. Between the two thresholds nothing changes, so a steady
   load never flaps.
3. There are never more workers than chunks of work at a time.
4. One iteration is no trend: the number grows after `UP` iterations in a row need more, and shrinks after `DOWN` in a row
   need fewer, all with the same workers; the most cautious of these numbers is used.
"""

from collections import deque
from dataclasses import dataclass

WORTH_HAVING, WORTH_KEEPING = 0.10, 0.05
"""Shares of an iteration."""
UP, DOWN = 2, 3


@dataclass(frozen=True)
class LeastSeconds:
    """Least savings per iteration that count: below them are the fixed costs of each call, which more workers do not share."""

    scale_up: float = 1.5
    scale_down: float = 1.0


@dataclass(frozen=True)
class Load:
    """The load of one iteration.

    `workers`: those that took work. `seconds`: of the iteration; there was rollout work for `rollout_seconds` of them, and the
    learner waited for it for `waited_seconds`. `chunks`: most pieces of work at a time.
    """

    workers: int
    seconds: float
    rollout_seconds: float
    waited_seconds: float
    chunks: int


class Demand:
    """The scaling policy and its memory of the last iterations."""

    def __init__(self, least: int, most: int, counts: LeastSeconds | None = None) -> None:
        self._least, self._most, self._counts = least, most, counts or LeastSeconds()
        self._answers: deque[int] = deque(maxlen=max(UP, DOWN))
        self._workers = 0

    def wanted(self, load: Load, asked: int) -> int:
        """The number of workers after this iteration, of which `asked` were wanted: between least and most.

        Fewer may have worked (nodes are starting) or more (some are leaving).
        """
        now = max(load.workers, 1)
        if now != self._workers:
            self._answers.clear()
            self._workers = now
        self._answers.append(self._bounded(answer(load, self._counts)))
        last = list(self._answers)
        if len(last) >= UP and min(last[-UP:]) > asked:
            return min(last[-UP:])
        if len(last) >= DOWN and max(last[-DOWN:]) < asked:
            return max(last[-DOWN:])
        return self._bounded(asked)

    def _bounded(self, count: int) -> int:
        return min(max(count, self._least), self._most)


def answer(load: Load, counts: LeastSeconds | None = None) -> int:
    """The number of workers that one iteration by itself needs (rules 1 to 3); at least 1."""
    counts = counts or LeastSeconds()
    now, most = max(load.workers, 1), max(load.chunks, 1)
    wanted = min(now, most)
    while wanted < most and _gain(load, wanted) >= max(WORTH_HAVING * _length(load, wanted), counts.scale_up):
        wanted += 1
    if wanted > now:
        return wanted
    while wanted > 1 and _loss(load, wanted) < max(WORTH_KEEPING * _cautious_length(load, wanted), counts.scale_down):
        wanted -= 1
    return wanted


def waited(seconds: float, rollout_seconds: float, learner_seconds: float) -> float:
    """Seconds of the rollouts in which the learner was idle, if it was busy for `learner_seconds` of the iteration."""
    return min(max(seconds - learner_seconds, 0.0), rollout_seconds)


def _length(load: Load, workers: int) -> float:
    """Seconds of the iteration with so many workers."""
    return load.seconds - load.waited_seconds * (1 - max(load.workers, 1) / workers)


def _gain(load: Load, workers: int) -> float:
    """Seconds by which one more would shorten it."""
    return _length(load, workers) - _length(load, workers + 1)


def _cautious_length(load: Load, workers: int) -> float:
    """The same with fewer workers, as if all of the rollouts' time were waited for."""
    return load.seconds + load.rollout_seconds * (max(load.workers, 1) / workers - 1)


def _loss(load: Load, workers: int) -> float:
    """Seconds by which one fewer would lengthen it."""
    return _cautious_length(load, workers - 1) - _cautious_length(load, workers)
