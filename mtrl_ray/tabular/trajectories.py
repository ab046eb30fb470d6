"""The quantities of `values` by enumerating every conversation: slow, and independent of the recursions.

A trajectory (s_1, a_1, s_2, …, a_H, s_{H+1}) has probability Π_h π(a_h|s_h) p(s_{h+1}|s_h, a_h). One array per policy,
[games, contexts, trajectories], has all of them, ordered by the index (a_1, s_2, a_2, …, s_{H+1}).
"""

import numpy as np

from mtrl_ray.tabular.games import PreferenceGame
from mtrl_ray.tabular.mdp import Array, LayeredMDP, Policy


def log_probabilities(mdp: LayeredMDP, policy: Policy) -> Array:
    """Log-probability of every trajectory, [games, contexts, trajectories]; −∞ for impossible ones."""
    paths = np.zeros((*mdp.contexts.shape, 1, 1))
    """[games, contexts, histories, states]"""
    for choices, transitions in zip(policy, mdp.transitions, strict=True):
        with np.errstate(divide="ignore"):
            step = choices[..., None] + np.log(transitions)
        paths = paths[..., None, None] + step[:, :, None]
        paths = paths.reshape(*mdp.contexts.shape, -1, transitions.shape[-1])
    return paths.reshape(*mdp.contexts.shape, -1)


def trajectory_kl(mdp: LayeredMDP, first: Policy, second: Policy) -> Array:
    """KL between the two distributions over trajectories, [games]."""
    one, other = log_probabilities(mdp, first), log_probabilities(mdp, second)
    possible = np.isfinite(one)
    ratio = np.where(possible, one, 0.0) - np.where(possible, other, 0.0)
    return mdp.average((np.exp(one) * ratio).sum(axis=-1))


def preference(game: PreferenceGame, first: Policy, second: Policy) -> Array:
    """P(first ≻ second) over pairs of trajectories, [games]; trajectories with the same final state are pooled."""
    finals = [
        np.exp(log_probabilities(game.mdp, policy)).reshape(*game.mdp.contexts.shape, -1, game.mdp.finals).sum(axis=2)
        for policy in (first, second)
    ]
    return game.mdp.average(np.einsum("gcx,gcxy,gcy->gc", finals[0], game.preference, finals[1]))


def regularised_preference(game: PreferenceGame, first: Policy, second: Policy) -> Array:
    """P_α(first ≻ second), [games]."""
    price = trajectory_kl(game.mdp, second, game.reference) - trajectory_kl(game.mdp, first, game.reference)
    return preference(game, first, second) + game.alpha * price
