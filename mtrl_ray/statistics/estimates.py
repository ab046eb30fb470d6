"""Means, differences and correlations with intervals that count what was drawn independently.

1. Observations that share a source (turns of one dialogue, samples of one context, contexts made from one recorded
   consultation) are one cluster. An interval is over clusters; `Estimate` says how many there are. Without `clusters`
   every observation is its own.
2. `mean_interval`: Student's t with as many degrees of freedom as there are clusters, less one. The standard error is the
   delete-one-cluster jackknife's (CR3; Cameron & Miller 2015, "A practitioner's guide to cluster-robust inference",
   §VI.B), which keeps its level with few clusters of unequal sizes. With clusters of equal size it is the t interval of
   the clusters' means. Scores lie in [0, 1]; an interval never leaves the bounds of its values.
3. Clusters without any spread (all means equal, or a single cluster) say nothing to the t statistic. Bounded values then
   get the exact interval of rule 4, unbounded ones no width (several clusters) or an infinite one (one cluster).
4. n values that all equal c were drawn with probability P(X = c)^n, so with confidence 1 - α P(X = c) is at least
   p = (α/2)^(1/n), and the mean lies in [p c + (1 - p) low, p c + (1 - p) high]. At c = low or c = high this is
   Clopper and Pearson's interval for no failures in n trials.
5. `paired_difference` is the same on a - b: two policies on the same contexts.
6. `correlation`: Pearson's r with Fisher's interval, tanh(atanh r ± z / √(n - 3)). With clusters the standard error of
   atanh r is the jackknife's too, with Student's t. Within `strata` it is the mean of their r, weighted by size.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

from mtrl_ray.errors import DataError

Values = Sequence[float] | np.ndarray
Bounds = tuple[float, float]
Clusters = Sequence[Hashable] | np.ndarray
"""The cluster of each observation."""

SCORES: Bounds = (0.0, 1.0)
"""Where scores lie."""
EQUAL = 1e-12
"""Means of the same numbers, added up in another order, differ by less."""


@dataclass(frozen=True)
class Estimate:
    """A statistic of `n` observations in `clusters` independent clusters, with its confidence interval [low, high].

    Undefined numbers are NaN. `clusters` 0: the observations are independent, so it becomes n.
    """

    mean: float
    low: float
    high: float
    n: int
    clusters: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "clusters", self.clusters or self.n)

    def as_dict(self) -> dict[str, Any]:
        """`{mean, low, high, n, clusters}` as JSON can hold it: NaN and infinities become None."""
        numbers = {"mean": self.mean, "low": self.low, "high": self.high}
        finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        return {**finite, "n": self.n, "clusters": self.clusters}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Estimate":
        """The inverse of `as_dict`; without `clusters` they are n. Raises DataError if a key is missing or no number."""
        try:
            unknown = {"mean": math.nan, "low": -math.inf, "high": math.inf}
            numbers = {key: value if tree[key] is None else float(tree[key]) for key, value in unknown.items()}
            return cls(**numbers, n=int(tree["n"]), clusters=int(tree.get("clusters", 0)))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{tree!r} is no estimate; it needs the numbers mean, low, high and n") from error

    def size(self, unit: str) -> str:
        """`256 contexts`, or `256 contexts in 22 clusters`; `unit`: what the observations are, in the plural."""
        return f"{self.n} {unit}" if self.clusters == self.n else f"{self.n} {unit} in {self.clusters} clusters"


def mean_interval(
    values: Values, level: float = 0.95, bounds: Bounds | None = SCORES, clusters: Clusters | None = None
) -> Estimate:
    """The mean of all values with its two-sided interval at confidence `level`, over clusters.

    `bounds`: between which every value is known to lie (None: no bounds). Raises DataError for no values, a value that
    is not finite, and a value outside `bounds`.
    """
    array = _finite(values, "values")
    _check_level(level)
    if bounds is not None:
        _check_bounds(array, bounds)
    codes, count = _codes(clusters, array.size)
    sums, sizes = np.bincount(codes, weights=array), np.bincount(codes)
    means, mean, n = sums / sizes, float(array.mean()), array.size
    if float(np.ptp(means)) <= EQUAL * float(np.abs(array).max()):
        return _without_spread(float(means[0]), n, count, level, bounds)
    half = _half(array.mean(), (array.sum() - sums) / (n - sizes), level)
    low, high = bounds or (-math.inf, math.inf)
    return Estimate(mean, max(mean - half, low), min(mean + half, high), n, count)


def paired_difference(
    a: Values, b: Values, level: float = 0.95, bounds: Bounds | None = SCORES, clusters: Clusters | None = None
) -> Estimate:
    """The mean of a - b over pairs, with its interval; `bounds` are those of a and of b. Raises DataError."""
    first, second = finite_pair(a, b, "a", "b")
    if bounds is None:
        return mean_interval(first - second, level, None, clusters)
    _check_bounds(first, bounds)
    _check_bounds(second, bounds)
    width = bounds[1] - bounds[0]
    return mean_interval(first - second, level, (-width, width), clusters)


def correlation(
    x: Values, y: Values, level: float = 0.95, clusters: Clusters | None = None, strata: Clusters | None = None
) -> Estimate:
    """Pearson's r in `mean`, with its interval; NaN in [-1, 1] if x or y has no spread. Raises DataError.

    `strata`: r is taken within each of them and averaged, weighted by their sizes; those without spread are left out.
    """
    first, second = finite_pair(x, y, "x", "y")
    _check_level(level)
    n = first.size
    if clusters is None and strata is None:
        return _fisher(first, second, level)
    (codes, count), (strata_codes, kinds) = _codes(clusters, n), _codes([0] * n if strata is None else strata, n)
    moments = _moments(first, second, codes, strata_codes, (count, kinds))
    r = float(_mean_r(moments.sum(axis=0)[None])[0])
    if not math.isfinite(r):
        return Estimate(math.nan, -1.0, 1.0, n, count)
    without = _mean_r(moments.sum(axis=0) - moments)
    if count < 3 or not np.isfinite(without).all():
        return Estimate(r, -1.0, 1.0, n, count)
    if max(abs(r), np.abs(without).max()) > 1 - EQUAL:
        return Estimate(r, r, r, n, count) if np.ptp(without) <= EQUAL else Estimate(r, -1.0, 1.0, n, count)
    z = math.atanh(r)
    half = _half(z, np.arctanh(without), level)
    return Estimate(r, math.tanh(z - half), math.tanh(z + half), n, count)


def gap_closed(start: Estimate, end: Estimate, expert: Estimate, level: float = 0.95) -> Estimate | None:
    """(end - start) / (expert - start) in `mean`; None if the expert's mean is not above the start's.

    The interval is the delta method's: each mean's standard error is read off its own interval, and the three are taken
    as independent, which is conservative if they share contexts.
    """
    gap = expert.mean - start.mean
    if not gap > 0:
        return None
    ratio = (end.mean - start.mean) / gap
    z = float(ndtri((1 + level) / 2))
    errors = np.array([(estimate.high - estimate.low) / (2 * z) for estimate in (end, start, expert)])
    slopes = np.array([1 / gap, (ratio - 1) / gap, -ratio / gap])
    half = z * float(np.linalg.norm(slopes * errors)) if np.isfinite(errors).all() else math.inf
    parts = (start, end, expert)
    return Estimate(
        ratio, ratio - half, ratio + half, min(part.n for part in parts), min(part.clusters for part in parts)
    )


def finite_pair(a: Values, b: Values, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [n]. Raises DataError, which calls them `first` and `second`, unless they are finite and as many."""
    left, right = _finite(a, first), _finite(b, second)
    if left.size != right.size:
        raise DataError(f"{first} has {left.size} values and {second} {right.size}; pairs need as many of each")
    return left, right


def _half(whole: float, without: np.ndarray, level: float) -> float:
    """Half the interval's width: the statistic of all data, and of the data without each cluster, float [clusters]."""
    count = len(without)
    variance = (count - 1) / count * float(np.square(without - whole).sum())
    return float(stdtrit(count - 1, (1 + level) / 2)) * math.sqrt(variance)


def _fisher(x: np.ndarray, y: np.ndarray, level: float) -> Estimate:
    n = x.size
    first, second = x - x.mean(), y - y.mean()
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


def _moments(
    x: np.ndarray, y: np.ndarray, cluster: np.ndarray, stratum: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Sums of 1, x, y, x², y², xy of each cluster in each stratum, float [clusters, strata, 6]; x and y are centred in it."""
    sizes = np.bincount(stratum)
    x, y = (values - (np.bincount(stratum, weights=values) / sizes)[stratum] for values in (x, y))
    place = cluster * shape[1] + stratum
    parts = [np.ones_like(x), x, y, x * x, y * y, x * y]
    sums = [np.bincount(place, weights=part, minlength=shape[0] * shape[1]) for part in parts]
    return np.stack(sums, axis=-1).reshape(*shape, 6)


def _mean_r(moments: np.ndarray) -> np.ndarray:
    """r within each stratum, averaged by size over the strata in which it is defined; float [rows] of [rows, strata, 6]."""
    n, x, y, xx, yy, xy = np.moveaxis(moments, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        vx, vy = xx - x * x / n, yy - y * y / n
        r = np.clip((xy - x * y / n) / np.sqrt(vx * vy), -1.0, 1.0)
        defined = (n > 1) & (vx > EQUAL * xx) & (vy > EQUAL * yy)
        weights = np.where(defined, n, 0.0)
        return (np.where(defined, r, 0.0) * weights).sum(axis=-1) / weights.sum(axis=-1)


def _codes(names: Clusters | None, n: int) -> tuple[np.ndarray, int]:
    """Each observation's cluster as a number, int [n], and how many clusters there are."""
    if names is None:
        return np.arange(n), n
    if len(names) != n:
        raise DataError(f"{n} values have {len(names)} clusters; each value belongs to one")
    known: dict[Hashable, int] = {}
    codes = np.array([known.setdefault(name, len(known)) for name in names], dtype=np.int64)
    return codes, len(known)


def _without_spread(value: float, n: int, clusters: int, level: float, bounds: Bounds | None) -> Estimate:
    if bounds is None:
        half = math.inf if clusters == 1 else 0.0
        return Estimate(value, value - half, value + half, n, clusters)
    seen = ((1 - level) / 2) ** (1 / clusters)
    low, high = bounds
    return Estimate(value, seen * value + (1 - seen) * low, seen * value + (1 - seen) * high, n, clusters)


def _finite(values: Values, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise DataError(f"{name} has shape {array.shape}; a statistic needs a list of at least one number")
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        raise DataError(f"{name}[{where}] is {array[where]}; every number has to be finite")
    return array


def _check_bounds(array: np.ndarray, bounds: Bounds) -> None:
    outside = np.flatnonzero((array < bounds[0]) | (array > bounds[1]))
    if outside.size:
        raise DataError(
            f"value {float(array[outside[0]]):g} lies outside [{bounds[0]:g}, {bounds[1]:g}]; "
            "give the bounds of the values, or bounds=None if they have none"
        )


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise DataError(f"level is {level}; a confidence level lies between 0 and 1")
