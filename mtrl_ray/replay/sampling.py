"""How conversations are drawn from the buffer: uniformly, or in proportion to a priority.

Proportional prioritisation (Schaul et al. 2016, arXiv 1511.05952, §3.3-3.4): `P(i) = p_i^alpha / sum_k p_k^alpha`,
drawn by stratified sampling over the cumulative priorities, and importance weights `w_i = (N P(i))^-beta`, divided by
the largest in the buffer so that they only ever scale an update down. alpha = 0 is uniform; beta = 1 corrects the bias
fully.
"""

import numpy as np

EXPONENT = 0.6
"""alpha of the proportional variant (Schaul et al. 2016, Table 3)."""
CORRECTION = 0.4
"""beta at the start of training (Schaul et al. 2016, Table 3); the paper anneals it to 1."""
VARIANCE_FLOOR = 1e-3
"""Added to a context's score variance, so that a context that is always won or lost can still be drawn."""


def uniform(size: int, n: int, seed: int) -> np.ndarray:
    """`n` of `size` positions without replacement, in the order they were drawn."""
    return np.random.default_rng(seed).choice(size, n, replace=False)


def proportional(
    priorities: np.ndarray, n: int, seed: int, exponent: float = EXPONENT, correction: float = CORRECTION
) -> tuple[np.ndarray, np.ndarray]:
    """`n` positions drawn with replacement in proportion to `priorities^exponent`, and their importance weights.

    `priorities`: float [size], positive. Returns (positions [n], weights in (0, 1] [n]).
    """
    probabilities = priorities**exponent
    probabilities = probabilities / probabilities.sum()
    rng = np.random.default_rng(seed)
    points = (np.arange(n) + rng.random(n)) / n
    drawn = np.minimum(np.searchsorted(np.cumsum(probabilities), points, side="right"), len(priorities) - 1)
    weights = (probabilities / probabilities.min()) ** -correction
    return drawn, weights[drawn]


def score_variance(contexts: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Priority of each conversation: the variance of the scores of its context's conversations, plus a floor.

    `contexts`: int codes [size]; `scores` [size]. A context whose outcome varies is where the policy decides it.
    """
    counts = np.bincount(contexts)
    mean = np.bincount(contexts, weights=scores) / np.maximum(counts, 1)
    variance = np.bincount(contexts, weights=(scores - mean[contexts]) ** 2) / np.maximum(counts, 1)
    return variance[contexts] + VARIANCE_FLOOR
