"""How many rollout workers a run has use for: a pure function of what its last iterations showed.

An iteration of T seconds asks the rollouts for work during R of them (conversations, responses), and during W ≤ R of those
the learner has nothing to do: it waits. In the other T - R seconds the rollouts wait for the learner.

1. With n workers, m of them would take W·n/m seconds in place of W: the iteration is shortened by W·(1 - n/m). The n-th
   worker is worth having while it shortens the iteration by at least `WORTH_HAVING` of its length, and `having_seconds`.
2. One too many: without it the iteration would be longer by R·(n/(n-1) - 1) at most. It is let go where that is less than
   `WORTH_KEEPING` of the iteration, or than `keeping_seconds`. What lies between the two thresholds changes nothing, so a
   steady load never flaps.
3. A worker more than there were chunks of work at a time would have nothing to hold.
4. Conversations that reach the learner as stale as the buffer's bound allows were collected too early: a quarter of the
   workers is let go, at least one. Only collecting beside the learner can bring that about.
5. One iteration is no trend: `UP` in a row have to ask for more than were asked for, `DOWN` in a row for fewer, all with
   the same workers; the most cautious of them counts. Rule 4 does not wait.
"""

from collections import deque
from dataclasses import dataclass

WORTH_HAVING, WORTH_KEEPING = 0.10, 0.05
"""Shares of an iteration."""
UP, DOWN = 2, 3


@dataclass(frozen=True)
class LeastSeconds:
    """The least that counts of an iteration: below it are the costs of every call, which more workers do not share."""

    having: float = 1.5
    keeping: float = 1.0


@dataclass(frozen=True)
class Load:
    """What one iteration showed.

    `workers`: those that took work; `seconds` of the iteration, of which the rollouts were asked for work for
    `rollout_seconds` and the learner waited for them for `waited_seconds`; `chunks`: the most pieces of work at a time;
    `staleness`: how many weight versions behind the oldest conversation was when the learner got it, of at most `bound`.
    """

    workers: int
    seconds: float
    rollout_seconds: float
    waited_seconds: float
    chunks: int
    staleness: int = 0
    bound: int | None = None

    @property
    def too_stale(self) -> bool:
        """Whether conversations were as stale as is allowed; never where they are learned from at once."""
        return self.bound is not None and self.staleness >= max(1, self.bound)


class Demand:
    """The policy, with its memory of the last iterations."""

    def __init__(self, least: int, most: int, counts: LeastSeconds | None = None) -> None:
        self._least, self._most, self._counts = least, most, counts or LeastSeconds()
        self._answers: deque[int] = deque(maxlen=max(UP, DOWN))
        self._workers = 0

    def wanted(self, load: Load, asked: int) -> int:
        """How many workers there should be after this iteration, where `asked` should have been: between least and most.

        Those who worked may be fewer than were asked for (nodes on their way) or more (some that leave).
        """
        now = max(load.workers, 1)
        if now != self._workers:
            self._answers.clear()
            self._workers = now
        if load.too_stale:
            self._answers.clear()
            return self._bounded(min(now, asked) - max(1, now // 4))
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
    """The number of workers that one iteration by itself asks for (rules 1 to 3); at least 1."""
    counts = counts or LeastSeconds()
    now, most = max(load.workers, 1), max(load.chunks, 1)
    wanted = min(now, most)
    while wanted < most and _gain(load, wanted) >= max(WORTH_HAVING * _length(load, wanted), counts.having):
        wanted += 1
    if wanted > now:
        return wanted
    while wanted > 1 and _loss(load, wanted) < max(WORTH_KEEPING * _cautious_length(load, wanted), counts.keeping):
        wanted -= 1
    return wanted


def waited(seconds: float, rollout_seconds: float, learner_seconds: float) -> float:
    """Of the rollouts' seconds those in which the learner, busy for `learner_seconds` of the iteration, had nothing to do."""
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
