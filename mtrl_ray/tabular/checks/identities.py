"""Identities of 2405.14655 §3 that hold for any policies, to rounding error."""

import numpy as np

from mtrl_ray.tabular import trajectories, updates, values
from mtrl_ray.tabular.checks.suite import Check, Suite, verdict
from mtrl_ray.tabular.games import PreferenceGame, random_policy
from mtrl_ray.tabular.mdp import Array, Policy, log_mean_exp

EXACT = 1e-12


def trajectory_divergence(suite: Suite) -> Check:
    """KL between distributions over whole conversations, by enumeration, is E_π Σ_h KL(π‖μ)[s_h]."""
    name, errors = "trajectory_divergence", []
    rng = suite.rng(name)
    for game in suite.batches:
        policy = random_policy(game.mdp, rng)
        enumerated = trajectories.trajectory_kl(game.mdp, policy, game.reference)
        errors.append(np.abs(enumerated - values.trajectory_kl(game.mdp, policy, game.reference)).max())
    return verdict(name, max(errors), EXACT, suite.games)


def preference_difference(suite: Suite) -> Check:
    """P_α(π≻π̄) − P_α(π'≻π̄) = E_π' Σ_h [⟨π−π', Q^{π,π̄}⟩ + α KL(π'‖μ) − α KL(π‖μ)]; the left side by enumeration."""
    name, errors = "preference_difference", []
    rng = suite.rng(name)
    for game in suite.batches:
        first, second, opponent = (random_policy(game.mdp, rng) for _ in range(3))
        wins = [trajectories.regularised_preference(game, policy, opponent) for policy in (first, second)]
        errors.append(np.abs(wins[0] - wins[1] - _advantage(game, first, second, opponent)).max())
    return verdict(name, max(errors), EXACT, suite.games)


def mirror_descent_step(suite: Suite) -> Check:
    """One step of MTPO from any π changes KL_p(π*‖·) by exactly −η [P_α(π*≻π) − ½ + α KL_p(π*‖π)] + curvature."""
    name, errors = "mirror_descent_step", []
    rng = suite.rng(name)
    for game, star in suite.solved():
        policy = random_policy(game.mdp, rng)
        eta = rng.uniform(0.0, 1.0, game.games) / game.alpha
        before = values.trajectory_kl(game.mdp, star, policy)
        after = values.trajectory_kl(game.mdp, star, updates.mtpo(game, policy, eta))
        drift = values.regularised_preference(game, star, policy) - 0.5 + game.alpha * before
        expected = before - eta * drift + _curvature(game, star, policy, eta)
        errors.append((np.abs(after - expected) / (1.0 + before)).max())
    return verdict(name, max(errors), EXACT, suite.games)


def _advantage(game: PreferenceGame, first: Policy, second: Policy, opponent: Policy) -> Array:
    """The right side of the difference identity, [games]."""
    mdp = game.mdp
    q = values.preference_values(game, first, opponent).q
    visits = values.occupancy(mdp, second)
    total = np.zeros(mdp.contexts.shape)
    for turn in range(mdp.horizon):
        change = np.exp(first[turn]) - np.exp(second[turn])
        total += np.einsum("gcs,gcsa,gcsa->gc", visits[turn], change, q[turn])
    prices = [values.expected_divergence(mdp, second, policy, game.reference) for policy in (second, first)]
    return mdp.average(total + game.alpha[:, None] * (prices[0] - prices[1]))


def _curvature(game: PreferenceGame, star: Policy, policy: Policy, eta: Array) -> Array:
    """E_π* Σ_h [log E_π e^{ηG} − η E_π G] with G = Q^{π,π} − α log(π/μ), [games]."""
    q = values.preference_values(game, policy, policy).q
    visits = values.occupancy(game.mdp, star)
    scale = eta[:, None, None, None]
    total = np.zeros(game.mdp.contexts.shape)
    for states, current, anchor, value in zip(visits, policy, game.reference, q, strict=False):
        gain = scale * (value - game.alpha[:, None, None, None] * (current - anchor))
        excess = log_mean_exp(current, gain) - (np.exp(current) * gain).sum(axis=-1)
        total += np.einsum("gcs,gcs->gc", states, excess)
    return game.mdp.average(total)
