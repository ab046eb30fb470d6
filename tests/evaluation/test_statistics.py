"""Intervals, differences, correlation and calibration: against scipy, against exact coverage, and at the edges."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mtrl_ray.errors import DataError
from mtrl_ray.statistics.calibration import calibration
from mtrl_ray.statistics.estimates import (
    Estimate,
    correlation,
    gap_closed,
    mean_interval,
    paired_difference,
)

scores = st.floats(0, 1, allow_subnormal=False)


def assert_interval(estimate, low, high):
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-10)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 5, 256])
def test_mean_interval_is_scipys(n, level):
    values = np.random.default_rng(n).normal(3, 2, n)
    estimate = mean_interval(values, level, bounds=None)
    expected = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.n == n
    assert_interval(estimate, expected.low, expected.high)


def test_mean_interval_stays_within_the_bounds():
    values = [1.0, 1.0, 1.0, 0.0]
    free = mean_interval(values, bounds=None)
    assert free.high > 1
    assert mean_interval(values) == Estimate(free.mean, max(free.low, 0.0), 1.0, 4)


@pytest.mark.parametrize("n", [1, 3, 256])
@pytest.mark.parametrize("score", [0.0, 1.0])
def test_all_failures_and_all_successes_have_the_exact_interval(n, score):
    exact = stats.binomtest(int(score) * n, n).proportion_ci(0.95, method="exact")
    assert_interval(mean_interval([score] * n), exact.low, exact.high)


def test_equal_scores_keep_a_width_that_shrinks_with_their_number():
    widths = [estimate.high - estimate.low for estimate in (mean_interval([0.4] * n) for n in (1, 4, 64))]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 0.9
    assert 0 < widths[-1] < 0.1


def test_unbounded_values_without_spread():
    assert mean_interval([7.0] * 5, bounds=None) == Estimate(7.0, 7.0, 7.0, 5)
    assert mean_interval([7.0], bounds=None) == Estimate(7.0, -math.inf, math.inf, 1)


def test_mean_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.beta(2, 3, (4000, 12))
    estimates = [mean_interval(row, 0.9) for row in draws]
    covered = np.mean([estimate.low <= 0.4 <= estimate.high for estimate in estimates])
    assert covered == pytest.approx(0.9, abs=0.02)


@given(st.lists(scores, min_size=1, max_size=30))
def test_mean_interval_holds_the_mean(values):
    estimate = mean_interval(values)
    assert 0 <= estimate.low <= estimate.mean + 1e-12
    assert estimate.mean - 1e-12 <= estimate.high <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "at least one number"),
        ([[0.1, 0.2]], "at least one number"),
        ([0.5, math.nan], r"values\[1\] is nan"),
        ([0.5, 1.5], r"1.5 lies outside \[0, 1\]"),
    ],
)
def test_mean_interval_refuses(values, message):
    with pytest.raises(DataError, match=message):
        mean_interval(values)


def test_repeated_contexts_have_the_interval_of_their_clusters():
    means = np.random.default_rng(5).beta(2, 3, 22)
    once = mean_interval(means)
    often = mean_interval(np.repeat(means, 12), clusters=np.repeat(np.arange(22), 12))
    assert (often.mean, often.low, often.high) == pytest.approx((once.mean, once.low, once.high))
    assert (once.n, once.clusters, often.n, often.clusters) == (22, 22, 264, 22)
    naive = mean_interval(np.repeat(means, 12))
    assert often.high - often.low > 3 * (naive.high - naive.low)
    assert (once.size("contexts"), often.size("contexts")) == ("22 contexts", "264 contexts in 22 clusters")


def test_clusters_of_unequal_size_have_the_jackknifes_interval():
    rng = np.random.default_rng(6)
    names = [f"c{k}" for k in range(7) for _ in range(k + 1)]
    values = rng.normal(size=len(names))
    estimate = mean_interval(values, 0.9, None, names)
    without = [np.mean([v for v, name in zip(values, names, strict=True) if name != f"c{k}"]) for k in range(7)]
    error = math.sqrt(6 / 7 * sum((one - values.mean()) ** 2 for one in without))
    half = stats.t.ppf(0.95, 6) * error
    assert_interval(estimate, values.mean() - half, values.mean() + half)
    difference = paired_difference(values + 1, np.ones(len(names)), 0.9, None, names)
    assert_interval(difference, estimate.low, estimate.high)


def test_equal_clusters_are_as_many_observations():
    two, thirty = mean_interval([0.4] * 2), mean_interval([0.4] * 30, clusters=["a"] * 15 + ["b"] * 15)
    assert (thirty.n, thirty.clusters) == (30, 2)
    assert_interval(thirty, two.low, two.high)
    assert mean_interval([0.0, 1.0, 1.0, 0.0], clusters="aabb").high > 0.9, "means alike, and only two of them"
    assert mean_interval([1.0, 2.0], bounds=None, clusters="aa").high == math.inf
    with pytest.raises(DataError, match="2 values have 3 clusters"):
        mean_interval([0.1, 0.2], clusters="abc")


def clustered(rng, clusters: int, spread: float):
    """Pairs (x, y) with r = .5 in clusters of 1 to 20, `spread` of either's variance shared in a cluster; their names."""
    sizes = rng.integers(1, 21, clusters)
    names = np.repeat(np.arange(clusters), sizes)
    covariance = [[1.0, 0.5], [0.5, 1.0]]
    shared = rng.multivariate_normal([0, 0], covariance, clusters)[names]
    own = rng.multivariate_normal([0, 0], covariance, len(names))
    return math.sqrt(spread) * shared + math.sqrt(1 - spread) * own, names


@pytest.mark.parametrize("clusters", [8, 22, 60])
def test_clustered_intervals_cover_as_often_as_they_say(clusters):
    rng = np.random.default_rng(clusters)
    means, rs, naive = [], [], []
    for _ in range(400):
        pairs, names = clustered(rng, clusters, 0.6)
        mean, r = mean_interval(pairs[:, 0], bounds=None, clusters=names), correlation(*pairs.T, clusters=names)
        means.append(mean.low <= 0 <= mean.high)
        rs.append(r.low <= 0.5 <= r.high)
        alone = mean_interval(pairs[:, 0], bounds=None)
        naive.append(alone.low <= 0 <= alone.high)
    assert 0.92 < np.mean(means) < 0.985
    assert 0.90 < np.mean(rs) < 0.985
    assert np.mean(naive) < 0.7


def test_paired_difference_is_the_paired_t_test():
    rng = np.random.default_rng(1)
    a = rng.random(40)
    b = np.clip(a - 0.1 + 0.05 * rng.normal(size=40), 0, 1)
    estimate = paired_difference(a, b)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert_interval(estimate, expected.low, expected.high)
    assert estimate.low > 0


def test_paired_difference_may_be_negative_and_needs_pairs():
    assert paired_difference([0.0, 0.1, 0.0], [1.0, 0.9, 0.7]).mean == pytest.approx(-2.5 / 3)
    assert paired_difference([3.0, 5.0], [1.0, 2.0], bounds=None).mean == pytest.approx(2.5)
    with pytest.raises(DataError, match="a has 2 values and b 1"):
        paired_difference([0.1, 0.2], [0.1])
    with pytest.raises(DataError, match="5 lies outside"):
        paired_difference([5.0, 0.2], [0.1, 0.3])


@pytest.mark.parametrize("n", [4, 10, 300])
def test_correlation_is_scipys(n):
    rng = np.random.default_rng(n)
    x = rng.normal(size=n)
    y = 0.5 * x + rng.normal(size=n)
    expected = stats.pearsonr(x, y)
    interval = expected.confidence_interval(0.95)
    estimate = correlation(x, y)
    assert estimate.mean == pytest.approx(expected.statistic)
    assert_interval(estimate, interval.low, interval.high)


def test_correlation_at_its_edges():
    assert math.isnan(correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).mean)
    assert correlation([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == Estimate(pytest.approx(-1.0), -1.0, 1.0, 3)
    perfect = correlation([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])
    assert (perfect.low, perfect.high) == pytest.approx((1.0, 1.0))
    assert math.isnan(correlation([1.0], [2.0]).mean)


def naive_within(x, y, strata, keep):
    found = [(x[mask], y[mask]) for kind in set(strata) if (mask := (strata == kind) & keep).sum() > 1]
    return np.average([np.corrcoef(*pair)[0, 1] for pair in found], weights=[len(pair[0]) for pair in found])


def test_correlation_over_clusters_and_within_strata_is_the_jackknifes():
    pairs, names = clustered(np.random.default_rng(7), 12, 0.4)
    x, y = pairs.T
    strata = np.arange(len(names)) % 3
    y = y + 10 * strata  # what only the stratum explains is no part of it
    estimate = correlation(x, y, clusters=names, strata=strata)
    z = np.arctanh(naive_within(x, y, strata, np.full(len(x), True)))
    without = np.arctanh([naive_within(x, y, strata, names != name) for name in range(12)])
    half = stats.t.ppf(0.975, 11) * math.sqrt(11 / 12 * np.square(without - z).sum())
    assert estimate.mean == pytest.approx(np.tanh(z))
    assert_interval(estimate, np.tanh(z - half), np.tanh(z + half))
    assert (estimate.n, estimate.clusters) == (len(names), 12)


def test_correlation_of_too_few_clusters_says_nothing():
    assert correlation([1.0, 2.0, 3.0, 5.0], [3.0, 2.0, 1.0, 1.0], clusters="aabb").low == -1.0
    assert math.isnan(correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], clusters="abc").mean)
    line = correlation([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], clusters="abcd")
    assert (line.mean, line.low, line.high) == pytest.approx((1.0, 1.0, 1.0))


def naive_calibration_error(predicted, actual, groups):
    return sum(
        len(group) / len(predicted) * abs(np.mean([predicted[i] - actual[i] for i in group])) for group in groups
    )


def test_calibration_has_bins_of_equal_count():
    rng = np.random.default_rng(2)
    predicted = rng.random(103)
    actual = (rng.random(103) < predicted).astype(float)
    table = calibration(predicted, actual, bins=10)
    assert sorted(entry.n for entry in table.bins) == [10] * 7 + [11] * 3
    order = np.argsort(predicted)
    groups = np.split(order, np.cumsum([entry.n for entry in table.bins])[:-1])
    assert table.error == pytest.approx(naive_calibration_error(predicted, actual, groups))
    assert all(a.high < b.low for a, b in zip(table.bins, table.bins[1:], strict=False))
    assert json.loads(json.dumps(table.as_dict()))["bins"][0]["n"] == table.bins[0].n


def test_calibration_error_of_known_predictors():
    rng = np.random.default_rng(3)
    truth = rng.random(20_000)
    outcome = (rng.random(20_000) < truth).astype(float)
    assert calibration(truth, outcome).error < 0.02
    assert calibration(np.clip(truth + 0.2, 0, 1.2), outcome).error == pytest.approx(0.2, abs=0.02)


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), scores), min_size=1, max_size=40), st.randoms())
def test_calibration_keeps_equal_predictions_together_in_any_order(pairs, rng):
    table = calibration([p for p, _ in pairs], [a for _, a in pairs], bins=5)
    shuffled = rng.sample(pairs, len(pairs))
    again = calibration([p for p, _ in shuffled], [a for _, a in shuffled], bins=5)
    assert sum(entry.n for entry in table.bins) == len(pairs)
    assert [entry.n for entry in table.bins] == [entry.n for entry in again.bins]
    assert table.error == pytest.approx(again.error)
    lows = [entry.low for entry in table.bins]
    assert lows == sorted(set(lows))


def test_calibration_refuses_no_bins():
    with pytest.raises(DataError, match="bins is 0"):
        calibration([0.1], [0.2], bins=0)


def test_gap_closed():
    start, end, expert = (mean_interval([m - 0.1, m, m + 0.1] * 40) for m in (0.2, 0.5, 0.8))
    gap = gap_closed(start, end, expert)
    assert gap.mean == pytest.approx(0.5)
    rng = np.random.default_rng(4)
    errors = [(e.high - e.low) / 2 / 1.959964 for e in (start, end, expert)]
    s, e, x = (rng.normal(m, error, 200_000) for m, error in zip((0.2, 0.5, 0.8), errors, strict=True))
    assert (gap.high - gap.low) / 2 == pytest.approx(1.96 * np.std((e - s) / (x - s)), rel=0.02)
    assert gap_closed(expert, end, start) is None


def test_an_estimate_survives_json_with_its_infinities():
    assert Estimate.from_dict({"mean": 0.5, "low": 0.4, "high": 0.6, "n": 10}).clusters == 10, "as version 0.1 wrote it"
    for estimate in (Estimate(0.5, 0.4, 0.6, 10, 3), Estimate(7.0, -math.inf, math.inf, 1)):
        assert Estimate.from_dict(json.loads(json.dumps(estimate.as_dict(), allow_nan=False))) == estimate
    with pytest.raises(DataError, match="is no estimate"):
        Estimate.from_dict({"mean": 0.5})
