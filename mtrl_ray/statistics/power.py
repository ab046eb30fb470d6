"""What a comparison could have shown: the smallest difference that as many runs find, and the runs that a difference needs.

Of a paired t test, two-sided at `level`, that finds a true difference with probability `power`: with n differences of standard
deviation s it finds (t_{(1+level)/2} + t_power) s / √n, both quantiles with n - 1 degrees of freedom.
"""

import math

import numpy as np
from scipy.special import stdtrit

from mtrl_ray.statistics.estimates import Values

MOST_RUNS = 100_000


def smallest_difference(differences: Values, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true mean that as many differences of this spread would show; infinite for fewer than two."""
    found = np.asarray(differences, dtype=np.float64)
    return _detectable(float(found.std(ddof=1)), len(found), level, power) if len(found) > 1 else math.inf


def runs_needed(differences: Values, effect: float, level: float = 0.95, power: float = 0.8) -> int:
    """How many differences of this spread show a true mean of `effect`; at most `MOST_RUNS`, which stands for never."""
    deviation = float(np.std(np.asarray(differences, dtype=np.float64), ddof=1))
    low, high = 2, MOST_RUNS
    while low < high:
        middle = (low + high) // 2
        enough = _detectable(deviation, middle, level, power) <= effect
        low, high = (low, middle) if enough else (middle + 1, high)
    return low


def _detectable(deviation: float, n: int, level: float, power: float) -> float:
    quantiles = float(stdtrit(n - 1, (1 + level) / 2) + stdtrit(n - 1, power))
    return quantiles * deviation / math.sqrt(n)
