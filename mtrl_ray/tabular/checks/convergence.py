"""Convergence of the last iterate: the theorems' bounds and the observed rates (2405.14655 §3, 2312.00886 §5).

The bounds are loose by orders of magnitude, so checking them alone proves little. Three more statements are checked: the
divergence becomes small, it falls at least like 1/t, and the algorithms converge to the same policy.
"""

import numpy as np

from mtrl_ray.tabular.checks.suite import Check, Run, Suite, verdict
from mtrl_ray.tabular.games import PreferenceGame
from mtrl_ray.tabular.mdp import Array
from mtrl_ray.tabular.values import trajectory_kl

MTPO_FACTOR, MTPO_TAU_FACTOR = 32.0, 9.0
CONVERGED = 1e-5
"""KL_p(π*‖π_T) after a thousand iterations; the last iterate's duality gap has the same size."""
SETTLED = 1e-24
"""Smaller divergences are rounding errors and have no rate."""


def mtpo_bound(suite: Suite) -> Check:
    """KL_p(π*‖π_t) ≤ 32 H Q²/(α²(t+1)) for all t, Q = max(4αH log(1/μ_min), 1)."""
    ratio = max(_ratio(game, run, MTPO_FACTOR) for game, run in zip(suite.batches, suite.mtpo, strict=True))
    return verdict("mtpo_bound", ratio, 1.0, suite.games)


def mtpo_tau_bound(suite: Suite) -> Check:
    """KL_p(π*‖π_t) ≤ 9 H Q²/(α²(t+1)) for all t."""
    ratio = max(_ratio(game, run, MTPO_TAU_FACTOR) for game, run in zip(suite.batches, suite.mtpo_tau, strict=True))
    return verdict("mtpo_tau_bound", ratio, 1.0, suite.games)


def nash_md_bound(suite: Suite) -> Check:
    """With one turn, Nash-MD has KL(π*‖π_t) ≤ 8/(α²(t+1)) and is MTPO-τ."""
    worst, games = 0.0, 0
    for game, run, twin in zip(suite.batches, suite.nash_md, suite.mtpo_tau, strict=True):
        if game.mdp.horizon == 1:
            games += game.games
            steps = np.arange(1, suite.steps + 1)[:, None]
            worst = max(worst, float((run.divergence * game.alpha**2 * (steps + 1) / 8.0).max()))
            same = np.abs(run.divergence - twin.divergence).max() <= 1e-12
            worst = worst if same else float("nan")
    return verdict("nash_md_bound", worst, 1.0, games)


def mtpo_converges(suite: Suite) -> Check:
    """KL_p(π*‖π_T) of MTPO's last iterate gets small."""
    return verdict("mtpo_converges", _last(suite.mtpo), CONVERGED, suite.games)


def mtpo_tau_converges(suite: Suite) -> Check:
    """KL_p(π*‖π_T) of MTPO-τ's last iterate gets small."""
    return verdict("mtpo_tau_converges", _last(suite.mtpo_tau), CONVERGED, suite.games)


def mtpo_rate(suite: Suite) -> Check:
    """MTPO's KL_p(π*‖π_t) falls at least like 1/t: exponent of t over the last three quarters (its theory says −4)."""
    return verdict("mtpo_rate", _exponent(suite.mtpo), -1.0, suite.games)


def mtpo_tau_rate(suite: Suite) -> Check:
    """MTPO-τ's KL_p(π*‖π_t) falls at least like 1/t: exponent of t over the last three quarters (its theory says −2)."""
    return verdict("mtpo_tau_rate", _exponent(suite.mtpo_tau), -1.0, suite.games)


def same_point(suite: Suite) -> Check:
    """MTPO, MTPO-τ and Nash-MD end in the same policy: KL_p between their last iterates."""
    errors = []
    for game, *runs in zip(suite.batches, suite.mtpo, suite.mtpo_tau, suite.nash_md, strict=True):
        ends = [run.last for run in runs]
        errors += [trajectory_kl(game.mdp, ends[0], other).max() for other in ends[1:]]
    return verdict("same_point", max(errors), CONVERGED, suite.games)


def last_iterate(suite: Suite) -> Check:
    """On cyclic preferences, the duality gap of MTPO's last iterate itself gets small, without averaging."""
    gaps = np.concatenate(
        [run.gap[-1][game.of_kind("cyclic")] for game, run in zip(suite.batches, suite.mtpo, strict=True)]
    )
    return verdict("last_iterate", gaps.max(), CONVERGED, len(gaps))


def theorem_bound(game: PreferenceGame, steps: np.ndarray, factor: float) -> Array:
    """`factor` · H Q²/(α²(t+1)), [steps, games]; μ_min is the smallest probability of the reference."""
    horizon = game.mdp.horizon
    least = np.min([layer.min(axis=(1, 2, 3)) for layer in game.reference], axis=0)
    scale = np.maximum(4.0 * game.alpha * horizon * -least, 1.0)
    return factor * horizon * (scale / game.alpha) ** 2 / (steps[:, None] + 1.0)


def _ratio(game: PreferenceGame, run: Run, factor: float) -> float:
    steps = np.arange(1.0, len(run.divergence) + 1.0)
    return float((run.divergence / theorem_bound(game, steps, factor)).max())


def _last(runs: tuple[Run, ...]) -> float:
    return max(float(run.divergence[-1].max()) for run in runs)


def _exponent(runs: tuple[Run, ...]) -> float:
    """Largest exponent of t over games, from the KL after a quarter of the iterations and at the end."""
    steps = len(runs[0].divergence)
    early, late = (np.concatenate([run.divergence[step - 1] for run in runs]) for step in (steps // 4, steps))
    moving = late > SETTLED
    slopes = np.log(late[moving] / early[moving]) / np.log(steps / (steps // 4))
    return float(slopes.max()) if moving.any() else -np.inf
