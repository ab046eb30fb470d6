"""The Nash equilibrium of the regularised game: fixed point, value, uniqueness (2405.14655 §3)."""

import numpy as np

from mtrl_ray.tabular import updates, values
from mtrl_ray.tabular.checks.suite import Check, Suite, verdict
from mtrl_ray.tabular.equilibrium import best_response, duality_gap, worst_case
from mtrl_ray.tabular.games import random_policy
from mtrl_ray.tabular.mdp import log_softmax

EXACT = 1e-12


def fixed_point(suite: Suite) -> Check:
    """π* ∝ μ exp(Q^{π*,π*}/α), and the MTPO update leaves it where it is for every learning rate."""
    name, errors = "fixed_point", []
    for game, star in suite.solved():
        q = values.preference_values(game, star, star).q
        alpha = game.alpha[:, None, None, None]
        images = [tuple(log_softmax(mu + value / alpha) for mu, value in zip(game.reference, q, strict=True))]
        images += [updates.mtpo(game, star, share / game.alpha) for share in (0.01, 0.3, 1.0)]
        for image in images:
            errors += [np.abs(np.exp(new) - np.exp(old)).max() for new, old in zip(image, star, strict=True)]
    return verdict(name, max(errors), EXACT, suite.games)


def zero_duality_gap(suite: Suite) -> Check:
    """max_π P_α(π≻π*) − min_π P_α(π*≻π) = 0, both best responses by backward induction."""
    errors = [np.abs(duality_gap(game, star)).max() for game, star in suite.solved()]
    return verdict("zero_duality_gap", max(errors), EXACT, suite.games)


def value_one_half(suite: Suite) -> Check:
    """max_π P_α(π≻π*) = min_π P_α(π*≻π) = V^{π*,π*}(s_1) + α KL_p(π*‖μ) = ½."""
    name, errors = "value_one_half", []
    for game, star in suite.solved():
        start = game.mdp.average(values.preference_values(game, star, star).v[0][:, :, 0])
        price = game.alpha * values.trajectory_kl(game.mdp, star, game.reference)
        claims = (best_response(game, star)[1], worst_case(game, star), start + price)
        errors += [np.abs(value - 0.5).max() for value in claims]
    return verdict(name, max(errors), EXACT, suite.games)


def unique_equilibrium(suite: Suite) -> Check:
    """P_α(π≻π*) = ½ − α KL_p(π‖π*) for every π: whoever deviates from π* loses, so there is no other equilibrium."""
    name, errors = "unique_equilibrium", []
    rng = suite.rng(name)
    for game, star in suite.solved():
        for spread in (0.1, 1.0, 4.0):
            policy = random_policy(game.mdp, rng, spread)
            distance = game.alpha * values.trajectory_kl(game.mdp, policy, star)
            errors.append(np.abs(values.regularised_preference(game, policy, star) - 0.5 + distance).max())
    return verdict(name, max(errors), EXACT, suite.games)
