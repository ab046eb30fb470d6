"""Calibration: predictions sorted into bins of equal count, compared with what came.

Predictions that are equal are never parted, so the table does not depend on the order of the data. Expected calibration
error: Σ n_b / n |mean prediction - mean outcome|.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mtrl_ray.errors import DataError
from mtrl_ray.statistics.estimates import Values, finite_pair


@dataclass(frozen=True)
class CalibrationBin:
    """`n` predictions between `low` and `high`: their mean, and the mean of what came."""

    low: float
    high: float
    predicted: float
    actual: float
    n: int


@dataclass(frozen=True)
class Calibration:
    """Bins of equal count in ascending order of prediction, and the expected calibration error over them."""

    bins: list[CalibrationBin]
    error: float

    def as_dict(self) -> dict[str, Any]:
        """`{error, bins: [{low, high, predicted, actual, n}]}`."""
        return asdict(self)


def calibration(predicted: Values, actual: Values, bins: int = 10) -> Calibration:
    """Predictions against outcomes in at most `bins` bins of equal count (fewer if values tie). Raises DataError."""
    first, second = finite_pair(predicted, actual, "predicted", "actual")
    if bins < 1:
        raise DataError(f"bins is {bins}; calibration needs at least 1")
    order = np.argsort(first, kind="stable")
    first, second = first[order], second[order]
    edges = np.linspace(0, first.size, bins + 1).round().astype(int)
    # An edge inside a run of equal predictions moves to the run's end.
    inner = np.searchsorted(first, first[edges[1:-1][edges[1:-1] > 0] - 1], side="right")
    cuts = np.unique(np.concatenate([[0], inner, [first.size]]))
    table = [_bin(first[start:stop], second[start:stop]) for start, stop in pairwise(cuts)]
    error = sum(entry.n * abs(entry.predicted - entry.actual) for entry in table) / first.size
    return Calibration(table, error)


def _bin(predicted: np.ndarray, actual: np.ndarray) -> CalibrationBin:
    return CalibrationBin(
        low=float(predicted[0]),
        high=float(predicted[-1]),
        predicted=float(predicted.mean()),
        actual=float(actual.mean()),
        n=int(predicted.size),
    )
