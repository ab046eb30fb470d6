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
ITERATIONS = 4
"""Iterations over whose training conversations the score is averaged: single ones are noisy."""


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
    """A score of the training conversations, a mean over `ITERATIONS` iterations, at which training ends; None: never."""

    def __init__(self, score: float | None, before: Iterable[Mapping[str, float]] = ()) -> None:
        """before: metrics of the iterations that were done before."""
        self._score = score
        self._recent: deque[float] = deque(maxlen=ITERATIONS)
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
        """Count an iteration; one without conversations does not count."""
        if metrics.get(SCORE) is not None:
            self._recent.append(metrics[SCORE])

    @property
    def mean(self) -> float:
        """Mean score of the last iterations; NaN before the first."""
        return sum(self._recent) / len(self._recent) if self._recent else float("nan")

    @property
    def reached(self) -> bool:
        """Whether training is done."""
        return self._score is not None and len(self._recent) == ITERATIONS and self.mean >= self._score

    def said(self) -> str:
        """Why training ended, in a sentence."""
        return (
            f"training ends: the score of the last {ITERATIONS} iterations' conversations is {self.mean:.3f}, the target "
            f"{self._score:.3f}"
        )
