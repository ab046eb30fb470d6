"""The theorems as functions of a `Suite`; each returns a `Check`, {name, holds, error, bound, games}.

The first line of the docstring of a check is its statement, which the tables show.
"""

from collections.abc import Callable
from functools import partial

from mtrl_ray.tabular.checks import convergence, equilibria, identities, iterative_ppo, itpo, rlhf
from mtrl_ray.tabular.checks.suite import Check, Suite

Statement = Callable[[Suite], Check]

CHECKS: tuple[Statement, ...] = (
    identities.trajectory_divergence,
    identities.preference_difference,
    identities.mirror_descent_step,
    equilibria.fixed_point,
    equilibria.zero_duality_gap,
    equilibria.value_one_half,
    equilibria.unique_equilibrium,
    convergence.mtpo_bound,
    convergence.mtpo_tau_bound,
    convergence.nash_md_bound,
    convergence.mtpo_converges,
    convergence.mtpo_tau_converges,
    convergence.mtpo_rate,
    convergence.mtpo_tau_rate,
    convergence.same_point,
    convergence.last_iterate,
    rlhf.bradley_terry_recovered,
    rlhf.rlhf_optimum,
    rlhf.rlhf_exploitable,
    iterative_ppo.performance_difference,
    iterative_ppo.monotone_improvement,
    iterative_ppo.reaches_the_optimum,
    *iterative_ppo.NOISY,
    iterative_ppo.monte_carlo_regression,
    itpo.prefix_values,
    itpo.implicit_reward_of_an_outcome,
    itpo.turn_rewards_sum,
)


def statement(check: Statement) -> str:
    """The statement of a check: the first line of its docstring."""
    function = check.func if isinstance(check, partial) else check
    return (function.__doc__ or "").partition("\n")[0]


__all__ = ["CHECKS", "Check", "Statement", "Suite", "statement"]
