"""What a handful of numbers says, and how sure it is: intervals, paired differences, correlation, calibration.

1. `mean_interval`: Student's t on the mean. Scores lie in [0, 1]; an interval never leaves the bounds of its values.
2. Values without any spread (all equal, or a single one) say nothing to the t statistic. Bounded values then get the
   exact interval of rule 3, unbounded ones no width (n > 1) or an infinite one (n = 1).
3. n values that all equal c were drawn with probability P(X = c)^n, so with confidence 1 - α P(X = c) is at least
   p = (α/2)^(1/n), and the mean lies in [p c + (1 - p) low, p c + (1 - p) high]. At c = low or c = high this is
   Clopper and Pearson's interval for no failures in n trials.
4. `paired_difference` is the same on a - b: two policies on the same contexts.
5. `correlation`: Pearson's r with Fisher's interval, tanh(atanh r ± z / √(n - 3)).
6. `calibration`: predictions sorted into bins of equal count; values that are equal are never parted, so the table does
   not depend on the order of the data. Expected calibration error: Σ n_b / n |mean prediction - mean outcome|.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

from mtrl_ray.errors import DataError

Values = Sequence[float] | np.ndarray
Bounds = tuple[float, float]

SCORES: Bounds = (0.0, 1.0)
"""Where scores lie."""


@dataclass(frozen=True)
class Estimate:
    """A statistic with its confidence interval [low, high] over `n` observations; undefined numbers are NaN."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        """`{mean, low, high, n}` as JSON can hold it: NaN and infinities become None."""
        numbers = {"mean": self.mean, "low": self.low, "high": self.high}
        return {**{key: value if math.isfinite(value) else None for key, value in numbers.items()}, "n": self.n}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Estimate":
        """The inverse of `as_dict`. Raises DataError where a key is missing or no number."""
        try:
            unknown = {"mean": math.nan, "low": -math.inf, "high": math.inf}
            numbers = {key: value if tree[key] is None else float(tree[key]) for key, value in unknown.items()}
            return cls(**numbers, n=int(tree["n"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{tree!r} is no estimate; it needs the numbers mean, low, high and n") from error


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


def mean_interval(values: Values, level: float = 0.95, bounds: Bounds | None = SCORES) -> Estimate:
    """The mean with its two-sided interval at confidence `level`.

    `bounds`: between which every value is known to lie (None: no bounds). Raises DataError for no values, a value that
    is not finite, and a value outside `bounds`.
    """
    array = _finite(values, "values")
    _check_level(level)
    if bounds is not None:
        _check_bounds(array, bounds)
    mean, n = float(array.mean()), array.size
    low, high = bounds or (-math.inf, math.inf)
    if n == 1 or float(np.ptp(array)) == 0.0:
        return _without_spread(float(array[0]), n, level, bounds)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(array.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, max(mean - half, low), min(mean + half, high), n)


def paired_difference(a: Values, b: Values, level: float = 0.95, bounds: Bounds | None = SCORES) -> Estimate:
    """The mean of a - b over pairs, with its interval; `bounds` are those of a and of b. Raises DataError."""
    first, second = _pair(a, b, "a", "b")
    if bounds is None:
        return mean_interval(first - second, level, None)
    _check_bounds(first, bounds)
    _check_bounds(second, bounds)
    width = bounds[1] - bounds[0]
    return mean_interval(first - second, level, (-width, width))


def correlation(x: Values, y: Values, level: float = 0.95) -> Estimate:
    """Pearson's r in `mean` with Fisher's interval; NaN in [-1, 1] where x or y has no spread. Raises DataError."""
    first, second = _pair(x, y, "x", "y")
    _check_level(level)
    n = first.size
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    if n < 2 or np.ptp(x) == 0.0 or np.ptp(y) == 0.0 or scale == 0.0:
        return Estimate(math.nan, -1.0, 1.0, n)
    r = float(np.clip(first @ second / scale, -1.0, 1.0))
    if n <= 3:
        return Estimate(r, -1.0, 1.0, n)
    if abs(r) == 1.0:
        return Estimate(r, r, r, n)
    half = float(ndtri((1 + level) / 2)) / math.sqrt(n - 3)
    return Estimate(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half), n)


def calibration(predicted: Values, actual: Values, bins: int = 10) -> Calibration:
    """Predictions against outcomes in at most `bins` bins of equal count (fewer where values tie). Raises DataError."""
    first, second = _pair(predicted, actual, "predicted", "actual")
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


def gap_closed(start: Estimate, end: Estimate, expert: Estimate, level: float = 0.95) -> Estimate | None:
    """(end - start) / (expert - start) in `mean`; None where the expert's mean is not above the start's.

    The interval is the delta method's: each mean's standard error is read off its own interval, and the three are taken
    as independent, which is conservative where they share contexts.
    """
    gap = expert.mean - start.mean
    if not gap > 0:
        return None
    ratio = (end.mean - start.mean) / gap
    z = float(ndtri((1 + level) / 2))
    errors = np.array([(estimate.high - estimate.low) / (2 * z) for estimate in (end, start, expert)])
    slopes = np.array([1 / gap, (ratio - 1) / gap, -ratio / gap])
    half = z * float(np.linalg.norm(slopes * errors)) if np.isfinite(errors).all() else math.inf
    return Estimate(ratio, ratio - half, ratio + half, min(start.n, end.n, expert.n))


def _without_spread(value: float, n: int, level: float, bounds: Bounds | None) -> Estimate:
    if bounds is None:
        half = math.inf if n == 1 else 0.0
        return Estimate(value, value - half, value + half, n)
    seen = ((1 - level) / 2) ** (1 / n)
    low, high = bounds
    return Estimate(value, seen * value + (1 - seen) * low, seen * value + (1 - seen) * high, n)


def _bin(predicted: np.ndarray, actual: np.ndarray) -> CalibrationBin:
    return CalibrationBin(
        low=float(predicted[0]),
        high=float(predicted[-1]),
        predicted=float(predicted.mean()),
        actual=float(actual.mean()),
        n=int(predicted.size),
    )


def _finite(values: Values, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise DataError(f"{name} has shape {array.shape}; a statistic needs a list of at least one number")
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        raise DataError(f"{name}[{where}] is {array[where]}; every number has to be finite")
    return array


def _pair(a: Values, b: Values, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    left, right = _finite(a, first), _finite(b, second)
    if left.size != right.size:
        raise DataError(f"{first} has {left.size} values and {second} {right.size}; pairs need as many of each")
    return left, right


def _check_bounds(array: np.ndarray, bounds: Bounds) -> None:
    outside = np.flatnonzero((array < bounds[0]) | (array > bounds[1]))
    if outside.size:
        raise DataError(
            f"value {float(array[outside[0]]):g} lies outside [{bounds[0]:g}, {bounds[1]:g}]; "
            "give the bounds of the values, or bounds=None where they have none"
        )


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise DataError(f"level is {level}; a confidence level lies between 0 and 1")
