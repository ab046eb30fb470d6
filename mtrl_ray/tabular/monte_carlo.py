"""Q from sampled conversations: regression of returns on (state, response) pairs (2511.21638, Monte Carlo targets).

1. Conversations of a layered process are sampled for all games at once. The return of turn h is G_h = Σ_k γ^k r_{h+k},
   with r_h the reward on arrival in the state after turn h.
2. The least-squares fit on the indicator of a pair is the mean return of its visits. A conversation visits a pair at
   most once, so the returns of a pair are independent, and the standard error of their mean is σ/√n, with the exact
   variance σ² from the recursion E[G²] = E[r² + 2γ r V(s') + γ² E[G'²]].
3. By Bernstein's inequality the mean differs from Q by more than `√(2L) σ/√n + L B/(3n)` with probability at most
   2 exp(−L), with B the largest return. This tolerance holds for skewed returns and for few visits.
"""

from dataclasses import dataclass

import numpy as np

from mtrl_ray.tabular.games import Shape, random_mdp, random_policy
from mtrl_ray.tabular.mdp import Array, LayeredMDP, Policy


@dataclass(frozen=True)
class RewardProcess:
    """A layered process with rewards on arrival, per turn [games, contexts, next states], and γ."""

    mdp: LayeredMDP
    rewards: tuple[Array, ...]
    discount: float


@dataclass(frozen=True)
class QEstimate:
    """Mean sampled return and number of visits of every pair of a turn, [games, contexts, states, actions] each."""

    mean: Array
    visits: Array


@dataclass(frozen=True)
class Moments:
    """Exact mean (Q) and variance of the return of every pair of a turn, [games, contexts, states, actions] each."""

    q: Array
    variance: Array

    def tolerance(self, visits: Array, level: float, largest: float) -> Array:
        """Largest allowed distance of the mean of `visits` returns in [0, largest] from Q (rule 3); infinite for no visits."""
        with np.errstate(divide="ignore"):
            share = level / visits
        return np.sqrt(2.0 * share * np.maximum(self.variance, 0.0)) + share * largest / 3.0


def random_process(
    shape: Shape, games: int, rng: np.random.Generator, discount: float = 0.9
) -> tuple[RewardProcess, Policy]:
    """A random process with rewards in [0, 1] in every turn, and a random policy for it."""
    mdp = random_mdp(shape, games, rng)
    rewards = tuple(rng.uniform(0.0, 1.0, (*layer.shape[:2], layer.shape[-1])) for layer in mdp.transitions)
    return RewardProcess(mdp, rewards, discount), random_policy(mdp, rng)


def exact_moments(process: RewardProcess, policy: Policy) -> tuple[Moments, ...]:
    """Q(s, a) = E[r + γ V(s')] and the variance of the return, per turn, by recursion."""
    moments: list[Moments] = []
    mean = square = np.zeros((*process.mdp.contexts.shape, process.mdp.finals))
    gamma = process.discount
    for turn in reversed(range(process.mdp.horizon)):
        reward = process.rewards[turn]
        q = process.mdp.expected(turn, reward + gamma * mean)
        second = process.mdp.expected(turn, reward**2 + 2.0 * gamma * reward * mean + gamma**2 * square)
        moments.append(Moments(q, second - q**2))
        choices = np.exp(policy[turn])
        mean, square = (np.einsum("gcsa,gcsa->gcs", choices, entry) for entry in (q, second))
    return tuple(reversed(moments))


def monte_carlo_q(
    process: RewardProcess, policy: Policy, conversations: int, rng: np.random.Generator
) -> tuple[QEstimate, ...]:
    """Sample `conversations` conversations per game and regress their returns on the pairs, per turn."""
    pairs, rewards = _converse(process, policy, conversations, rng)
    estimates, returns = [], np.zeros_like(rewards[0])
    for turn in reversed(range(process.mdp.horizon)):
        returns = rewards[turn] + process.discount * returns
        estimates.append(_regress(pairs[turn], returns, policy[turn].shape))
    return tuple(reversed(estimates))


def _converse(
    process: RewardProcess, policy: Policy, conversations: int, rng: np.random.Generator
) -> tuple[list[np.ndarray], list[Array]]:
    """Per turn: the flat index of each conversation's (game, context, state, action), and its reward on arrival."""
    mdp = process.mdp
    game = np.broadcast_to(np.arange(mdp.games)[:, None], (mdp.games, conversations))
    context = _draw(mdp.contexts, (game,), rng)
    state = np.zeros(game.shape, dtype=np.int64)
    pairs, rewards = [], []
    for choices, transitions, reward in zip(policy, mdp.transitions, process.rewards, strict=True):
        action = _draw(np.exp(choices), (game, context, state), rng)
        pairs.append(np.ravel_multi_index((game, context, state, action), choices.shape))
        state = _draw(transitions, (game, context, state, action), rng)
        rewards.append(reward[game, context, state])
    return pairs, rewards


def _draw(probabilities: Array, where: tuple[np.ndarray, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw one index from each of the distributions (over the last axis) at the indices `where`."""
    thresholds = probabilities.cumsum(axis=-1)
    thresholds /= thresholds[..., -1:]
    return (rng.random((*where[0].shape, 1)) >= thresholds[where]).sum(axis=-1)


def _regress(pairs: np.ndarray, returns: Array, shape: tuple[int, ...]) -> QEstimate:
    cells = int(np.prod(shape))
    visits = np.bincount(pairs.ravel(), minlength=cells).astype(np.float64)
    mean = np.bincount(pairs.ravel(), returns.ravel(), cells) / np.maximum(visits, 1.0)
    return QEstimate(mean.reshape(shape), visits.reshape(shape))
