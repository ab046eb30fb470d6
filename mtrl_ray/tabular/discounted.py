"""The setting of Iterative PPO (2511.21638 §2): discounted decision processes, exact policy iteration.

1. Rewards are paid on arrival: Q(s, a) = E[R(s') + γ V(s')]. The outcome state leads to an absorbing state without
   reward. Arrays start with [games]; policies are log-probabilities [games, states, actions].
2. One iteration maximises E_π' Q − β KL in every state. With KL(π'‖π), the penalty of RLHF, the maximiser is
   `π' ∝ π exp(Q/β)`. With KL(π‖π'), the penalty of the paper's theorem 2, it is `π' = βπ / (λ − Q)`, with λ such that
   it sums to one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mtrl_ray.tabular.mdp import Array, divergence, log_softmax


@dataclass(frozen=True)
class DiscountedMDP:
    """A batch of discounted processes."""

    transitions: Array
    """[games, states, actions, next states]"""
    reward: Array
    """[games, states], paid on arrival, in [0, 1]."""
    discount: Array
    """[games], γ < 1."""

    @property
    def games(self) -> int:
        """Number of processes in the batch."""
        return len(self.discount)

    def backup(self, v: Array) -> Array:
        """Q(s, a) = E[R(s') + γ V(s')], from [games, states]."""
        return np.einsum("gsat,gt->gsa", self.transitions, self.reward + self.discount[:, None] * v)

    def resolvent(self, policy: Array) -> Array:
        """(I − γ P_π)^{-1}, [games, states, states]."""
        moves = np.einsum("gsa,gsat->gst", np.exp(policy), self.transitions)
        return np.linalg.inv(np.eye(moves.shape[-1]) - self.discount[:, None, None] * moves)


def evaluate(mdp: DiscountedMDP, policy: Array) -> tuple[Array, Array]:
    """V [games, states] and Q [games, states, actions] of a policy."""
    immediate = np.einsum("gsa,gsat,gt->gs", np.exp(policy), mdp.transitions, mdp.reward)
    v = np.einsum("gst,gt->gs", mdp.resolvent(policy), immediate)
    return v, mdp.backup(v)


def occupancy(mdp: DiscountedMDP, policy: Array) -> Array:
    """Discounted occupancy d(x | start s), [games, s, x]; each row sums to one."""
    return (1.0 - mdp.discount)[:, None, None] * mdp.resolvent(policy)


def optimal_values(mdp: DiscountedMDP) -> Array:
    """V*, [games, states], by policy iteration with greedy policies."""
    v = np.zeros(mdp.reward.shape)
    for _ in range(mdp.reward.shape[1] * mdp.transitions.shape[2] + 2):
        greedy = mdp.backup(v).argmax(axis=-1)
        chosen = np.take_along_axis(mdp.transitions, greedy[:, :, None, None], axis=2)[:, :, 0]
        system = np.eye(chosen.shape[-1]) - mdp.discount[:, None, None] * chosen
        better = np.linalg.solve(system, np.einsum("gst,gt->gs", chosen, mdp.reward)[..., None])[..., 0]
        if np.abs(better - v).max() < 1e-14:
            break
        v = better
    return v


@dataclass(frozen=True)
class Penalty:
    """One direction of the KL penalty: the policy that maximises the objective, and the divergence, both per state."""

    name: str
    best: Callable[[Array, Array, Array], Array]
    """(π, Q, β [games]) → π'."""
    between: Callable[[Array, Array], Array]
    """(π', π) → [games, states]."""

    def objective(self, new: Array, current: Array, q: Array, beta: Array) -> Array:
        """L_s(π') = E_π' Q − β KL, [games, states]."""
        return expectation(new, q) - beta[:, None] * self.between(new, current)


def expectation(policy: Array, q: Array) -> Array:
    """E_π Q(s, ·), [games, states]."""
    return np.einsum("gsa,gsa->gs", np.exp(policy), q)


def exponential_step(policy: Array, q: Array, beta: Array) -> Array:
    """argmax of E_π' Q − β KL(π'‖π)."""
    return log_softmax(policy + q / beta[:, None, None])


def reciprocal_step(policy: Array, q: Array, beta: Array) -> Array:
    """argmax of E_π' Q − β KL(π‖π').

    λ − max Q lies between β π(argmax Q) and β. Σ βπ/(λ − Q) is convex and decreasing there, so Newton's method from
    the left end approaches the root without overshooting.
    """
    scale = beta[:, None, None]
    below = q.max(axis=-1, keepdims=True) - q
    mass = scale * np.exp(policy)
    best = np.take_along_axis(mass, q.argmax(axis=-1)[..., None], axis=-1)
    level = best
    for _ in range(60):
        terms = mass / (level + below)
        excess = terms.sum(axis=-1, keepdims=True) - 1.0
        level = np.clip(level + excess / (terms / (level + below)).sum(axis=-1, keepdims=True), best, scale)
        if np.abs(excess).max() < 1e-15:
            break
    return log_softmax(np.log(mass) - np.log(level + below))


PENALTIES = (
    Penalty("KL(π'‖π)", exponential_step, lambda new, current: divergence(new, current)),
    Penalty("KL(π‖π')", reciprocal_step, lambda new, current: divergence(current, new)),
)


def random_processes(games: int, rng: np.random.Generator, states: int = 6, actions: int = 3) -> DiscountedMDP:
    """Random processes, γ uniform in [0.5, 0.95]. Half are ergodic with a reward in every state; half are conversations,
    with a reward only on arrival at the outcome, after which they end.
    """
    weights = rng.gamma(0.4, size=(games, states, actions, states)) + 1e-3
    reward = rng.uniform(0.0, 1.0, (games, states))
    conversations = np.arange(games) % 2 == 1
    outcome, end = states - 2, states - 1
    weights[conversations, outcome:] = 0.0
    weights[conversations, outcome:, :, end] = 1.0
    reward[conversations] = np.eye(states)[outcome]
    return DiscountedMDP(weights / weights.sum(axis=-1, keepdims=True), reward, rng.uniform(0.5, 0.95, games))


def random_stationary_policy(mdp: DiscountedMDP, rng: np.random.Generator, spread: float = 1.0) -> Array:
    """A policy with normal logits of standard deviation `spread`."""
    return log_softmax(spread * rng.standard_normal(mdp.transitions.shape[:3]))
