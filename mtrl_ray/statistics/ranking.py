"""How well predicted scores rank the alternatives of a group: answers in a state, against what came of each several times.

Group s has alternatives a with score q_sa and outcomes y_sar, r = 1 … R; Y_sa is their mean, bars are means over a group's
alternatives.

1. `rank_correlation`: the mean over groups of Spearman's ρ between q_s and Y_s, ties at their mean rank. Groups in which either
   does not vary have no ranks and are left out. Noise in Y draws it towards 0.
2. `gain`: the mean over groups of Y of the alternative with the highest score, less Ȳ_s: how much better it is to say what the
   score likes best than to draw one. Noise in Y does not bias it. (Alternatives that share the highest score: their mean.)
3. `best_gain`: the same if each choice is made by the mean of the other R - 1 outcomes: what a judge with so many samples
   gains, without the luck of those it was chosen by; a lower bound of what can be gained.
4. `top_1`: the share of groups in which the first choice's Y is above Ȳ_s; equal counts one half.
5. `slope`: Σ (q - q̄)(Y - Ȳ) / Σ (q - q̄)² over all alternatives, the within-group regression of outcomes on scores. 1: an
   advantage of .1 is worth .1. If scores are true values plus independent errors it is the share of the scores' variance
   within groups that is signal, and slope / (1 - slope) is signal against noise. Noise in Y does not bias it.
6. Groups with fewer than two alternatives have nothing to rank and are left out of everything.
"""

from dataclasses import dataclass

import numpy as np

from mtrl_ray.errors import DataError
from mtrl_ray.statistics.estimates import Estimate, mean_interval

DECIMALS = 6
"""Of outcomes' means: what differs by less, by the order in which the same 32-bit numbers were added up, is a tie."""


@dataclass(frozen=True)
class Ranking:
    """See the module's docstring; None if nothing can say it. `groups` were ranked; `ranked` of them have ranks."""

    groups: int
    ranked: int
    rank_correlation: float | None = None
    top_1: float | None = None
    gain: Estimate | None = None
    best_gain: float | None = None
    slope: float | None = None


def ranking(group: np.ndarray, scores: np.ndarray, outcomes: np.ndarray, sources: np.ndarray | None = None) -> Ranking:
    """Rank alternatives, [alternatives] each: their `group`, any labels, and `scores`.

    outcomes: float [alternatives, repeats], NaN where one is missing; alternatives without any are left out. sources: labels
    of what is independent, for the interval of `gain`; None: groups are. Raises DataError for sizes that do not fit.
    """
    group, scores, outcomes = np.asarray(group), np.asarray(scores, dtype=float), np.asarray(outcomes, dtype=float)
    if scores.shape != group.shape or outcomes.ndim != 2 or len(outcomes) != len(scores):
        raise DataError(
            f"{len(group)} alternatives need as many scores and rows of outcomes; they have {scores.shape} and {outcomes.shape}"
        )
    known = np.isfinite(outcomes).any(axis=1)
    labels = group if sources is None else np.asarray(sources)
    members = [np.flatnonzero(known & (group == name)) for name in np.unique(group[known])]
    members = [places for places in members if len(places) > 1]
    if not members:
        return Ranking(0, 0)
    correlations, tops, gains, best, products, squares = [], [], [], [], 0.0, 0.0
    for places in members:
        q, y = scores[places], np.nanmean(outcomes[places], axis=1).round(DECIMALS)
        gain = float(y[q == q.max()].mean() - y.mean())
        gains.append(gain)
        tops.append(0.5 + 0.5 * np.sign(round(gain, DECIMALS)))
        best.append(_best_gain(outcomes[places]))
        products += float(((q - q.mean()) * (y - y.mean())).sum())
        squares += float(np.square(q - q.mean()).sum())
        if np.ptp(q) > 0 and np.ptp(y) > 0:
            correlations.append(float(np.corrcoef(_ranks(q), _ranks(y))[0, 1]))
    chosen = [gain for gain in best if np.isfinite(gain)]
    return Ranking(
        groups=len(members),
        ranked=len(correlations),
        rank_correlation=float(np.mean(correlations)) if correlations else None,
        top_1=float(np.mean(tops)),
        gain=mean_interval(gains, bounds=(-1.0, 1.0), clusters=[labels[places[0]] for places in members]),
        best_gain=float(np.mean(chosen)) if chosen else None,
        slope=products / squares if squares > 0 else None,
    )


def _best_gain(outcomes: np.ndarray) -> float:
    """Outcome of the alternative that the other repeats like best, less the mean, over the repeats; NaN without any.

    outcomes: [alternatives, repeats]; repeats that an alternative lacks are left out.
    """
    whole = outcomes[:, np.isfinite(outcomes).all(axis=0)]
    if whole.shape[1] < 2:
        return float("nan")
    gains = []
    for repeat in range(whole.shape[1]):
        others = np.delete(whole, repeat, axis=1).mean(axis=1)
        first = np.isclose(others, others.max(), rtol=0, atol=10.0**-DECIMALS)
        gains.append(whole[first, repeat].mean() - whole[:, repeat].mean())
    return float(np.mean(gains))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties at their mean."""
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])


@dataclass(frozen=True)
class Spread:
    """Parts of the variance of scores that are grouped: by states, answers being what varies within.

    `within`: deviation within groups, in units of the score: √(Σ (x - x̄_s)² / (n - S)). `between`: the share of the variance
    that lies between groups, σ_b² / (σ_b² + σ_w²) of the one-way random effects model (the intraclass correlation), from 0 to
    1; a baseline per group removes it. Both None if no group has two members.
    """

    within: float | None
    between: float | None

    def numbers(self, prefix: str) -> dict[str, float]:
        """The parts that are known, as metrics: `PREFIX_within`, `PREFIX_between`."""
        parts = {"within": self.within, "between": self.between}
        return {f"{prefix}_{name}": value for name, value in parts.items() if value is not None}


def spread(scores: np.ndarray, group: np.ndarray) -> Spread:
    """Spread of scores, [members], over their groups, [members], any labels.

    With S groups of n_s members, MSW = Σ_s Σ (x - x̄_s)² / (n - S), MSB = Σ_s n_s (x̄_s - x̄)² / (S - 1) and
    n_0 = (n - Σ n_s² / n) / (S - 1): σ_w² = MSW, σ_b² = max((MSB - MSW) / n_0, 0).
    """
    values = np.asarray(scores, dtype=float)
    _, place, counts = np.unique(np.asarray(group), return_inverse=True, return_counts=True)
    n, groups = len(values), len(counts)
    if n == groups:
        return Spread(None, None)
    means = np.bincount(place, weights=values) / counts
    within = float(np.square(values - means[place]).sum() / (n - groups))
    if groups == 1:
        return Spread(float(np.sqrt(within)), 0.0)
    between = float((counts * np.square(means - values.mean())).sum() / (groups - 1))
    size = (n - float(np.square(counts).sum()) / n) / (groups - 1)
    shared = max((between - within) / size, 0.0)
    return Spread(float(np.sqrt(within)), shared / (shared + within) if shared + within > 0 else 0.0)
