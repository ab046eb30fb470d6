"""Ranks of alternatives against what came of them, on data whose ranks are known."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from mtrl_ray.errors import DataError
from mtrl_ray.statistics.ranking import ranking, spread


def drawn(rng: np.random.Generator, groups: int, size: int, repeats: int, error: float, noise: float):
    """(group, scores, outcomes, true values): scores are true values plus errors, outcomes are Bernoulli with `noise`."""
    group = np.repeat(np.arange(groups), size)
    true = np.repeat(rng.uniform(0.3, 0.7, groups), size) + rng.normal(0, 0.1, groups * size)
    scores = true + rng.normal(0, error, len(true))
    outcomes = true[:, None] + noise * rng.normal(0, 1, (len(true), repeats))
    return group, scores, outcomes, true


def test_a_perfect_and_an_inverted_order():
    group = np.array([0, 0, 0, 1, 1])
    outcomes = np.array([[0.1], [0.5], [0.9], [0.2], [0.6]])
    best = ranking(group, np.array([1.0, 2.0, 7.0, -3.0, -2.0]), outcomes)
    assert (best.groups, best.ranked, best.rank_correlation, best.top_1) == (2, 2, pytest.approx(1.0), 1.0)
    assert best.gain is not None and best.gain.mean == pytest.approx((0.4 + 0.2) / 2)
    worst = ranking(group, -np.array([1.0, 2.0, 7.0, -3.0, -2.0]), outcomes)
    assert worst.rank_correlation == pytest.approx(-1.0) and worst.top_1 == 0.0
    assert worst.gain is not None and worst.gain.mean == pytest.approx(-0.3)
    assert best.best_gain is None, "a single outcome cannot both choose and judge"


def test_spearman_is_scipys_in_every_group_and_levels_of_groups_do_not_count():
    rng = np.random.default_rng(0)
    group, scores, outcomes, _ = drawn(rng, 30, 5, 3, 0.1, 0.2)
    outcomes = outcomes.round(1)  # ties
    found = ranking(group, scores, outcomes)
    means = outcomes.mean(axis=1).round(6)
    each = [spearmanr(scores[group == s], means[group == s]).statistic for s in range(30)]
    assert found.rank_correlation == pytest.approx(float(np.nanmean(each)))
    shifted = ranking(group, scores + 10.0 * group, outcomes)
    assert shifted.rank_correlation == pytest.approx(found.rank_correlation)
    assert shifted.slope == pytest.approx(found.slope)


def test_what_has_no_ranks_is_left_out_and_counted():
    group = np.array([0, 0, 1, 1, 2, 3, 3])
    scores = np.array([0.1, 0.2, 0.3, 0.3, 0.5, 0.2, 0.1])
    outcomes = np.array([[0.4, 0.4], [0.4, 0.4], [0.0, 0.0], [1.0, 1.0], [0.3, 0.3], [0.5, 0.5], [np.nan, np.nan]])
    found = ranking(group, scores, outcomes)
    assert (found.groups, found.ranked, found.rank_correlation) == (2, 0, None)
    assert found.top_1 == 0.5 and found.gain is not None and found.gain.mean == 0.0, "a tie of scores is no choice"
    assert found.best_gain == pytest.approx(0.25), "of the groups 0 and 1 only the second has anything to choose"
    nothing = ranking(group[:1], scores[:1], outcomes[:1])
    assert (nothing.groups, nothing.gain, nothing.slope) == (0, None, None)


def test_missing_outcomes_are_no_zeros():
    outcomes = np.array([[0.9, np.nan], [0.5, 0.5]])
    found = ranking(np.zeros(2), np.array([1.0, 0.0]), outcomes)
    assert found.gain is not None and found.gain.mean == pytest.approx(0.2)
    assert found.best_gain is None, "one whole repeat is not enough"


def test_gain_and_slope_are_not_biased_by_noise_and_the_best_gain_is_a_lower_bound():
    rng = np.random.default_rng(1)
    group, scores, outcomes, true = drawn(rng, 4000, 4, 4, 0.1, 0.4)
    found = ranking(group, scores, outcomes)
    exact = ranking(group, scores, true[:, None])
    assert found.gain is not None and exact.gain is not None
    assert found.gain.mean == pytest.approx(exact.gain.mean, abs=0.012)
    assert found.slope == pytest.approx(0.5, abs=0.03), "errors as large as the values' own spread"
    attainable = ranking(group, true, true[:, None]).gain
    assert attainable is not None and found.best_gain is not None
    assert 0.0 < found.best_gain < attainable.mean
    plain = (
        outcomes.mean(axis=1).reshape(-1, 4).max(axis=1) - outcomes.mean(axis=1).reshape(-1, 4).mean(axis=1)
    ).mean()
    assert plain > attainable.mean, "judged by what it was chosen by, it would be too good"


def test_contexts_and_not_states_are_what_is_independent():
    rng = np.random.default_rng(2)
    group, scores, outcomes, _ = drawn(rng, 40, 3, 2, 0.1, 0.2)
    found = ranking(group, scores, outcomes, sources=group // 8)
    assert found.gain is not None and (found.gain.n, found.gain.clusters) == (40, 5)


def test_sizes_have_to_fit():
    with pytest.raises(DataError, match="3 alternatives need as many scores"):
        ranking(np.zeros(3), np.zeros(2), np.zeros((3, 1)))


def test_spread_recovers_the_parts_of_the_variance():
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 7, 3000)
    group = np.repeat(np.arange(3000), counts)
    scores = np.repeat(rng.normal(0, 0.3, 3000), counts) + rng.normal(0, 0.1, len(group))
    found = spread(scores, group)
    assert found.within == pytest.approx(0.1, rel=0.05)
    assert found.between == pytest.approx(0.9, abs=0.02)
    shuffled = spread(rng.permutation(scores), group)
    assert shuffled.between == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize(
    ("scores", "group", "within", "between"),
    [
        ([0.1, 0.5], [0, 1], None, None),
        ([], [], None, None),
        ([0.5, 0.5, 0.5], [0, 0, 1], 0.0, 0.0),
        ([0.0, 1.0, 0.0, 1.0], [0, 0, 1, 1], np.sqrt(0.5), 0.0),
        ([0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"], 0.0, 1.0),
        ([0.0, 1.0], [0, 0], np.sqrt(0.5), 0.0),
    ],
)
def test_spread_at_its_edges(scores, group, within, between):
    found = spread(np.array(scores), np.array(group))
    assert found.within == (within if within is None else pytest.approx(within)) and found.between == between
