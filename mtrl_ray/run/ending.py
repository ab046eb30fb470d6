"""When training ends: its iterations are done, the policy is good enough, or the time is up, whichever comes first.

A target lets a fast machine stop when it is done, and gives a slow one the time that it needs; `run.minutes` is the last bound.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from mtrl_ray.monitoring.recorder import read_metrics
from mtrl_ray.monitoring.view import View

BUDGET_SLACK = 1.0
"""An iteration is begun while at least this many times the last one's duration is left of `run.minutes`."""
SCORE = "collect/score_mean"
CONVERSATIONS = "collect/conversations"
ENOUGH = 128
"""Conversations, of the newest iterations, over which the score is averaged: its standard error is .04 at most."""


class Recent:
    """Mean score of the training conversations of the newest iterations that have `ENOUGH` of them together."""

    def __init__(self) -> None:
        self._iterations: deque[tuple[float, float]] = deque()

    def add(self, metrics: Mapping[str, float | None]) -> None:
        """Count an iteration; one without conversations does not count."""
        score, count = metrics.get(SCORE), metrics.get(CONVERSATIONS)
        if score is None or not count:
            return
        self._iterations.append((score, count))
        while self.conversations - self._iterations[0][1] >= ENOUGH:
            self._iterations.popleft()

    @property
    def conversations(self) -> float:
        """How many conversations the mean is over."""
        return sum(count for _, count in self._iterations)

    @property
    def mean(self) -> float | None:
        """None if there are fewer than `ENOUGH` conversations."""
        total = self.conversations
        return sum(score * count for score, count in self._iterations) / total if total >= ENOUGH else None


class Budget:
    """`run.minutes` of wall-clock time, from the first iteration on, recoveries included."""

    def __init__(self, minutes: float | None) -> None:
        self._minutes, self._started = minutes, 0.0
        self.last = 0.0  # seconds of the last iteration

    def begin(self, view: View) -> None:
        """Start the clock, if it does not run yet."""
        if not self._started:
            self._started = time.monotonic()
            view.begin()

    def spent(self) -> bool:
        """Whether another iteration as long as the last one would end too late."""
        elapsed = time.monotonic() - self._started
        return self._minutes is not None and elapsed + BUDGET_SLACK * self.last > 60 * self._minutes


class Target:
    """A score of the newest training conversations (`Recent`) at which training ends; None: never."""

    def __init__(self, score: float | None, before: Iterable[Mapping[str, float]] = ()) -> None:
        """before: metrics of the iterations that were done before."""
        self._score = score
        self._recent = Recent()
        for metrics in before:
            self.add(metrics)

    @classmethod
    def of(cls, share: float | None, folder: Path, note: Callable[[str], None]) -> "Target":
        """The target of a run: `share` of the gap between its start's held-out score and the scripted expert's.

        None, and a note, if the environment has no expert.
        """
        if share is None:
            return cls(None)
        summary = json.loads((folder / "summary.json").read_text())
        if "expert" not in summary:
            note(
                f"run.until_gap ({share:g}) ends nothing: the environment has no scripted agent 'expert' to measure a gap to"
            )
            return cls(None)
        start, expert = summary["start"]["mean"], summary["expert"]["mean"]
        return cls(start + share * (expert - start), read_metrics(folder))

    def add(self, metrics: Mapping[str, float]) -> None:
        """Count an iteration."""
        self._recent.add(metrics)

    @property
    def reached(self) -> bool:
        """Whether training is done."""
        mean = self._recent.mean
        return self._score is not None and mean is not None and mean >= self._score

    def said(self) -> str:
        """Why training ended, in a sentence."""
        recent = self._recent
        return (
            f"training ends: the score of the last {recent.conversations:,.0f} conversations is {recent.mean or 0.0:.3f}, "
            f"the target {self._score:.3f}"
        )
