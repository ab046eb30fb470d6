"""Exact values by backward recursion over the turns.

With μ the reference and π' the opponent (2405.14655 §3):

    KL_p(π‖μ)  = E_π Σ_h KL(π‖μ)[s_h]
    P_α(π ≻ π') = P(π ≻ π') − α KL_p(π‖μ) + α KL_p(π'‖μ)
    V(s_{H+1}) = P(s_{H+1} ≻ π'),  Q(s, a) = E[V(s') | s, a] − α KL(π‖μ)[s],  V(s) = E_π Q(s, ·)

1. Against a fixed opponent a game is a decision process with a reward only in its final states (`terminal`,
   [games, contexts, finals]): the probability to win or, for RLHF, the output of a reward model.
2. Such a process has a closed-form best policy, by backward recursion: V(s) = α log E_μ exp(Q(s, ·)/α), π ∝ μ exp(Q/α).
"""

from dataclasses import dataclass

import numpy as np

from mtrl_ray.tabular.games import PreferenceGame
from mtrl_ray.tabular.mdp import Array, LayeredMDP, Policy, divergence, log_mean_exp


@dataclass(frozen=True)
class Values:
    """Q per turn, [games, contexts, states, actions], and V per layer (including the last), [games, contexts, states]."""

    q: tuple[Array, ...]
    v: tuple[Array, ...]


def occupancy(mdp: LayeredMDP, policy: Policy) -> tuple[Array, ...]:
    """P(s_h = s | context) per layer, including the last: [games, contexts, states] each."""
    layers = [np.ones((*mdp.contexts.shape, 1))]
    for log_probabilities, transitions in zip(policy, mdp.transitions, strict=True):
        pairs = layers[-1][..., None] * np.exp(log_probabilities)
        layers.append(np.einsum("gcsa,gcsat->gct", pairs, transitions))
    return tuple(layers)


def final_distribution(mdp: LayeredMDP, policy: Policy) -> Array:
    """Distribution of the final state, [games, contexts, finals]."""
    return occupancy(mdp, policy)[-1]


def trajectory_kl(mdp: LayeredMDP, first: Policy, second: Policy) -> Array:
    """KL_p(first‖second), [games]: the divergence between the distributions over conversations."""
    return mdp.average(expected_divergence(mdp, first, first, second))


def expected_divergence(mdp: LayeredMDP, visitor: Policy, first: Policy, second: Policy) -> Array:
    """E_visitor Σ_h KL(first‖second)[s_h], [games, contexts]."""
    total = np.zeros(mdp.contexts.shape)
    for states, one, other in zip(occupancy(mdp, visitor), first, second, strict=False):
        total += np.einsum("gcs,gcs->gc", states, divergence(one, other))
    return total


def evaluate(mdp: LayeredMDP, policy: Policy, reference: Policy, alpha: Array, terminal: Array) -> Values:
    """Q and V of a policy for a terminal reward, regularised towards the reference with weight alpha [games]."""
    q: list[Array] = []
    v = [terminal]
    for turn in reversed(range(mdp.horizon)):
        penalty = alpha[:, None, None] * divergence(policy[turn], reference[turn])
        q.append(mdp.expected(turn, v[-1]) - penalty[..., None])
        v.append(np.einsum("gcsa,gcsa->gcs", np.exp(policy[turn]), q[-1]))
    return Values(tuple(reversed(q)), tuple(reversed(v)))


def best_policy(mdp: LayeredMDP, reference: Policy, alpha: Array, terminal: Array) -> tuple[Policy, Array]:
    """The policy that maximises the regularised value (rule 2), and its value per context, [games, contexts]."""
    policy: list[Array] = []
    v, scale = terminal, alpha[:, None, None]
    for turn in reversed(range(mdp.horizon)):
        advantage = mdp.expected(turn, v) / scale[..., None]
        soft = log_mean_exp(reference[turn], advantage)
        policy.append(reference[turn] + advantage - soft[..., None])
        v = scale * soft
    return tuple(reversed(policy)), v[:, :, 0]


def win_probability(game: PreferenceGame, finals: Array) -> Array:
    """P(x ≻ opponent) of every final state x; `finals` is the opponent's distribution of final states."""
    return np.einsum("gcxy,gcy->gcx", game.preference, finals)


def preference_values(game: PreferenceGame, policy: Policy, opponent: Policy) -> Values:
    """Q^{π,π'} and V^{π,π'}, with π = `policy` and π' = `opponent`."""
    terminal = win_probability(game, final_distribution(game.mdp, opponent))
    return evaluate(game.mdp, policy, game.reference, game.alpha, terminal)


def preference(game: PreferenceGame, first: Policy, second: Policy) -> Array:
    """P(first ≻ second), [games]."""
    terminal = win_probability(game, final_distribution(game.mdp, second))
    return game.mdp.average(np.einsum("gcx,gcx->gc", final_distribution(game.mdp, first), terminal))


def regularised_preference(game: PreferenceGame, first: Policy, second: Policy) -> Array:
    """P_α(first ≻ second), [games]."""
    price = trajectory_kl(game.mdp, second, game.reference) - trajectory_kl(game.mdp, first, game.reference)
    return preference(game, first, second) + game.alpha * price
