"""Every check holds, and fails if the code it checks has a mistake."""

import dataclasses
import math

import numpy as np
import pytest

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.tabular import checks, discounted, implicit_prm, monte_carlo, updates, values
from mtrl_ray.tabular.checks import convergence, equilibria, identities, iterative_ppo, itpo, rlhf, suite
from mtrl_ray.tabular.equilibrium import nash_equilibrium
from mtrl_ray.tabular.implicit_prm import token_rewards
from mtrl_ray.tabular.mdp import divergence, log_softmax
from mtrl_ray.tabular.reward_model import fit_bradley_terry
from mtrl_ray.tabular.updates import mirror_step
from mtrl_ray.tabular.values import preference_values


def names() -> list[str]:
    return [getattr(check, "__name__", None) or f"noisy_improvement {check.args[0].name}" for check in checks.CHECKS]


@pytest.mark.parametrize("check", checks.CHECKS, ids=names())
def test_check(small_suite, check):
    result = check(small_suite)
    assert result.holds and result.error <= result.bound, result
    assert 1 <= result.games <= small_suite.games
    assert len(checks.statement(check)) > 20


def test_names_of_checks_are_unique(small_suite):
    assert [check(small_suite).name for check in checks.CHECKS] == names()
    assert len(set(names())) == len(names())


def reversed_anchor(game, policy, eta):
    """The KL to the reference with its sign flipped."""
    share = (game.alpha * eta)[:, None, None, None]
    pairs = zip(policy, game.reference, strict=True)
    return tuple(log_softmax((1.0 + share) * current - share * anchor) for current, anchor in pairs)


def short_sighted(game, policy, opponent):
    """Q without the divergences of later turns."""
    return preference_values(dataclasses.replace(game, alpha=0.0 * game.alpha), policy, opponent)


def against_the_reference(game, policy, opponent):
    """Q against μ in place of the policy itself."""
    return preference_values(game, policy, game.reference)


def downhill(policy, q, eta):
    """Mirror descent in the wrong direction."""
    return mirror_step(policy, tuple(-value for value in q), eta)


def constant_rate(alpha, step):
    """A constant learning rate: MTPO-τ does not converge to the equilibrium."""
    return 0.3 / alpha


def exchanged_divergence(first, second):
    """KL with its arguments exchanged."""
    return divergence(second, first)


def of_another_game(game):
    """The equilibrium for twice the regularisation."""
    return nash_equilibrium(dataclasses.replace(game, alpha=2.0 * game.alpha))


def halved_reward(game):
    """Rewards on the wrong scale."""
    return 0.5 * fit_bradley_terry(game)


def of_another_policy(mdp, policy):
    """The occupancy of a policy nearer to uniform."""
    return discounted.occupancy(mdp, log_softmax(0.5 * policy))


def falling_step(policy, q, beta):
    """π ∝ π exp(−Q/β)."""
    return discounted.exponential_step(policy, -q, beta)


def uniform_draw(probabilities, where, rng):
    """Sampling that ignores policy and transitions."""
    return rng.integers(0, probabilities.shape[-1], where[0].shape)


def without_reference(model, reference, beta):
    """β log π_φ, without the reference."""
    return token_rewards(model, tuple(0.0 * step for step in reference), beta)


def sigmoid_weights(scores, eta):
    """Weights that do not sum to one."""
    return 1.0 / (1.0 + np.exp(-scores / eta))


FALLING = dataclasses.replace(discounted.PENALTIES[0], best=falling_step)

MISTAKES = [
    (updates, "mixture", reversed_anchor, identities.mirror_descent_step),
    (updates, "mixture", reversed_anchor, equilibria.fixed_point),
    (updates, "mixture", reversed_anchor, convergence.mtpo_bound),
    (updates, "mixture", reversed_anchor, convergence.mtpo_tau_bound),
    (updates, "mixture", reversed_anchor, convergence.mtpo_converges),
    (updates, "mixture", reversed_anchor, convergence.same_point),
    (updates, "mixture", reversed_anchor, convergence.last_iterate),
    (updates, "mixture", reversed_anchor, rlhf.rlhf_optimum),
    (updates, "preference_values", short_sighted, equilibria.fixed_point),
    (updates, "preference_values", short_sighted, convergence.mtpo_converges),
    (updates, "preference_values", against_the_reference, convergence.mtpo_converges),
    (updates, "preference_values", against_the_reference, convergence.mtpo_rate),
    (updates, "preference_values", against_the_reference, convergence.last_iterate),
    (updates, "preference_values", against_the_reference, rlhf.rlhf_exploitable),
    (updates, "mirror_step", downhill, convergence.mtpo_tau_converges),
    (updates, "mirror_step", downhill, convergence.nash_md_bound),
    (updates, "learning_rate", constant_rate, convergence.mtpo_tau_rate),
    (values, "divergence", exchanged_divergence, identities.trajectory_divergence),
    (values, "preference_values", short_sighted, identities.preference_difference),
    (suite, "nash_equilibrium", of_another_game, equilibria.fixed_point),
    (suite, "nash_equilibrium", of_another_game, equilibria.zero_duality_gap),
    (suite, "nash_equilibrium", of_another_game, equilibria.value_one_half),
    (suite, "nash_equilibrium", of_another_game, equilibria.unique_equilibrium),
    (rlhf, "fit_bradley_terry", halved_reward, rlhf.bradley_terry_recovered),
    (iterative_ppo, "occupancy", of_another_policy, iterative_ppo.performance_difference),
    (iterative_ppo, "PENALTIES", [FALLING], iterative_ppo.monotone_improvement),
    (iterative_ppo, "exponential_step", falling_step, iterative_ppo.reaches_the_optimum),
    (monte_carlo, "_draw", uniform_draw, iterative_ppo.monte_carlo_regression),
    (implicit_prm, "token_rewards", without_reference, itpo.prefix_values),
    (implicit_prm, "token_rewards", without_reference, itpo.implicit_reward_of_an_outcome),
    (implicit_prm, "turn_weights", sigmoid_weights, itpo.turn_rewards_sum),
]


@pytest.mark.parametrize(
    ("module", "name", "mistake", "check"), MISTAKES, ids=[f"{entry[3].__name__}-{entry[1]}" for entry in MISTAKES]
)
def test_a_mistake_makes_the_check_fail(monkeypatch, module, name, mistake, check):
    monkeypatch.setattr(module, name, mistake)
    with np.errstate(all="ignore"):
        result = check(checks.Suite(suite.LEAST_GAMES, seed=3, steps=150))
    assert not result.holds, result


def test_a_step_in_the_wrong_direction_breaks_theorem_2():
    assert not iterative_ppo.noisy_improvement(FALLING, checks.Suite(suite.LEAST_GAMES)).holds


def test_a_nan_error_does_not_hold():
    assert not suite.verdict("mtpo_bound", math.nan, 1.0, 5).holds


def test_a_suite_too_small_for_its_kinds_is_refused():
    for wrong, said in (
        ({"games": 19}, "--games 19: 5 kinds of preference in 4 shapes need at least 20"),
        ({"seed": -1}, "--seed -1"),
        ({"steps": 3}, "3 iterations are too few to estimate a rate"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            checks.Suite(**wrong)


def test_every_kind_of_preference_is_in_every_batch():
    batches = checks.Suite(23).batches
    assert sum(batch.games for batch in batches) == 23
    assert all(len(set(batch.kinds)) == 5 for batch in batches)
