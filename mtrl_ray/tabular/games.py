"""Random games: a layered process, a preference between final states, a reference policy and a regularisation.

1. Structures (`Shape`): one turn with as many outcomes as actions; layers with stochastic transitions, whose states do
   not determine the history; trees, whose states do.
2. Preferences (`KINDS`), P(x ≻ y) = 1 − P(y ≻ x): `random` for every pair; `bradley_terry`, σ(r_x − r_y); `cyclic`, an
   odd number of groups in a circle, each of which beats the next ones and loses to the previous ones, with random
   margins; `contextual`, a Bradley-Terry order that the second context reverses; `noisy`, a cycle added to random
   preferences, with answers flipped with some probability.
3. A batch mixes all kinds: game i has kind i modulo their number. The same seed gives the same games on every machine.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from mtrl_ray.tabular.mdp import Array, LayeredMDP, Policy, log_softmax

KINDS = ("random", "bradley_terry", "cyclic", "contextual", "noisy")


@dataclass(frozen=True)
class PreferenceGame:
    """A batch of games between two policies, regularised towards a reference."""

    mdp: LayeredMDP
    preference: Array
    """[games, contexts, finals, finals]: P(x ≻ y | context)."""
    reference: Policy
    """μ."""
    alpha: Array
    """[games], the weight of KL_p(π‖μ)."""
    kinds: tuple[str, ...]
    """Kind of preference of each game."""

    @property
    def games(self) -> int:
        """Number of games in the batch."""
        return self.mdp.games

    def of_kind(self, kind: str) -> np.ndarray:
        """Mask of the games of a kind, bool [games]."""
        return np.array([entry == kind for entry in self.kinds])


@dataclass(frozen=True)
class Shape:
    """Structure and sizes of the games of a batch. `branching`: next states per action of a tree."""

    structure: Literal["one_turn", "layered", "tree"]
    horizon: int
    actions: int
    states: int = 4
    finals: int = 5
    branching: int = 2
    contexts: int = 2


SHAPES = (
    Shape("one_turn", horizon=1, actions=5),
    Shape("layered", horizon=3, actions=3),
    Shape("layered", horizon=5, actions=2, states=3, finals=6),
    Shape("tree", horizon=2, actions=3),
)


def random_games(shape: Shape, games: int, rng: np.random.Generator) -> PreferenceGame:
    """A batch of random games of one shape; α is log-uniform in [0.1, 1]."""
    mdp = random_mdp(shape, games, rng)
    kinds = tuple(KINDS[index % len(KINDS)] for index in range(games))
    preference = np.stack([random_preference(kind, shape.contexts, mdp.finals, rng) for kind in kinds])
    alpha = np.exp(rng.uniform(np.log(0.1), 0.0, games))
    return PreferenceGame(mdp, preference, random_policy(mdp, rng), alpha, kinds)


def random_mdp(shape: Shape, games: int, rng: np.random.Generator) -> LayeredMDP:
    """Random transitions of the shape's structure and random probabilities of the contexts."""
    lead = (games, shape.contexts)
    if shape.structure == "tree":
        layers = tuple(_branches(lead, turn, shape, rng) for turn in range(shape.horizon))
    elif shape.structure == "one_turn":
        layers = (np.broadcast_to(np.eye(shape.actions), (*lead, 1, shape.actions, shape.actions)).copy(),)
    else:
        sizes = [1, *[shape.states] * (shape.horizon - 1), shape.finals]
        layers = tuple(_simplex((*lead, before, shape.actions, after), rng) for before, after in pairwise(sizes))
    return LayeredMDP(layers, 0.5 / shape.contexts + 0.5 * _simplex(lead, rng))


def random_policy(mdp: LayeredMDP, rng: np.random.Generator, spread: float = 1.0) -> Policy:
    """A policy with normal logits of standard deviation `spread`."""
    return tuple(log_softmax(spread * rng.standard_normal(layer.shape[:-1])) for layer in mdp.transitions)


def random_preference(kind: str, contexts: int, finals: int, rng: np.random.Generator) -> Array:
    """A random preference of a kind, [contexts, finals, finals]; only `contextual` differs between contexts."""
    if kind == "contextual":
        signs = np.where(np.arange(contexts) % 2 == 0, 1.0, -1.0)
        scores = signs[:, None] * 2.0 * rng.standard_normal(finals)
        return sigmoid(scores[:, :, None] - scores[:, None, :])
    if kind == "bradley_terry":
        scores = 1.5 * rng.standard_normal(finals)
        single = sigmoid(scores[:, None] - scores[None, :])
    elif kind == "cyclic":
        single = 0.5 + _cycle(finals, rng)
    elif kind == "random":
        single = 0.5 + _skew(rng.uniform(-0.48, 0.48, (finals, finals)))
    elif kind == "noisy":
        flips = rng.uniform(0.1, 0.4)
        clean = 0.5 + 0.5 * _cycle(finals, rng) + 0.5 * _skew(rng.uniform(-0.48, 0.48, (finals, finals)))
        single = (1.0 - 2.0 * flips) * clean + flips
    else:
        raise ValueError(f"unknown kind of preference {kind!r}; the kinds are {', '.join(KINDS)}")
    return np.broadcast_to(single, (contexts, finals, finals)).copy()


def is_cyclic(preference: Array) -> np.ndarray:
    """Whether three final states beat one another in a circle: [..., finals, finals] to bool [...]."""
    beats = (preference > 0.5).astype(np.float64)
    return np.einsum("...ij,...jk,...ki->...", beats, beats, beats) > 0


def sigmoid(x: Array) -> Array:
    """The logistic function, computed with tanh, which never overflows and is exactly symmetric."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _cycle(finals: int, rng: np.random.Generator) -> Array:
    """Margins P − ½ of an odd number of groups in a circle; members of one group tie."""
    groups = 5 if finals >= 5 and rng.random() < 0.5 else 3
    place = rng.permutation(finals) % groups
    ahead = (place[None, :] - place[:, None]) % groups
    margin = rng.uniform(0.2, 0.45, (groups, groups))[place[:, None], place[None, :]]
    return _skew(np.where((ahead > 0) & (ahead <= groups // 2), margin, -margin.T), where=ahead != 0)


def _skew(matrix: Array, where: np.ndarray | bool = True) -> Array:
    """The antisymmetric matrix with the upper triangle of `matrix`, zero elsewhere than in the mask `where`."""
    upper = np.where(where, np.triu(matrix, 1), 0.0)
    return upper - upper.T


def _simplex(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random distributions over the last axis, Dirichlet(0.4) with a floor that keeps every state reachable."""
    weights = rng.gamma(0.4, size=shape) + 0.01
    return weights / weights.sum(axis=-1, keepdims=True)


def _branches(lead: tuple[int, int], turn: int, shape: Shape, rng: np.random.Generator) -> Array:
    """Transitions of a tree: each (state, action) leads to `branching` states of its own."""
    states = (shape.actions * shape.branching) ** turn
    pairs = states * shape.actions
    layer = np.zeros((*lead, pairs, pairs, shape.branching))
    layer[:, :, np.arange(pairs), np.arange(pairs)] = _simplex((*lead, pairs, shape.branching), rng)
    return layer.reshape(*lead, states, shape.actions, pairs * shape.branching)
