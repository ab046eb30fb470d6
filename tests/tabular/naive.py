"""The definitions for the tabular games as loops over conversations, one game and context at a time."""

import math
from collections.abc import Iterator

import numpy as np

from mtrl_ray.tabular.games import PreferenceGame, Shape, random_games
from mtrl_ray.tabular.mdp import Policy

SMALL = (
    Shape("one_turn", horizon=1, actions=3),
    Shape("layered", horizon=2, actions=2, states=2, finals=3),
    Shape("layered", horizon=3, actions=2, states=2, finals=4, contexts=1),
    Shape("tree", horizon=2, actions=2, branching=1),
)


def small_games(index: int, seed: int, games: int = 5) -> tuple[PreferenceGame, np.random.Generator]:
    """A batch of a small shape with one game of each kind, and the generator for a test's other random numbers."""
    rng = np.random.default_rng(seed)
    return random_games(SMALL[index], games, rng), rng


def conversations(
    game: PreferenceGame, where: tuple[int, int], policy: Policy, turn: int = 0, state: int = 0
) -> Iterator[tuple[float, list[tuple[int, int]], int]]:
    """Yield (probability, [(state, action) per turn], final state) of every conversation that continues from a state."""
    if turn == game.mdp.horizon:
        yield 1.0, [], state
        return
    choices, transitions = policy[turn][where][state], game.mdp.transitions[turn][where][state]
    for action in range(len(choices)):
        for following in range(transitions.shape[-1]):
            step = math.exp(choices[action]) * transitions[action, following]
            if step > 0.0:
                for probability, pairs, final in conversations(game, where, policy, turn + 1, following):
                    yield step * probability, [(state, action), *pairs], final


def kl(first: np.ndarray, second: np.ndarray) -> float:
    """KL of two vectors of log-probabilities."""
    return sum(math.exp(p) * (p - q) for p, q in zip(first, second, strict=True))


def preference(game: PreferenceGame, first: Policy, second: Policy, number: int) -> float:
    """P(first ≻ second) over all pairs of conversations."""
    total = 0.0
    for context, weight in enumerate(game.mdp.contexts[number]):
        where = (number, context)
        others = list(conversations(game, where, second))
        for p, _, x in conversations(game, where, first):
            total += weight * p * sum(q * game.preference[where][x, y] for q, _, y in others)
    return total


def trajectory_kl(game: PreferenceGame, first: Policy, second: Policy, number: int) -> float:
    """Σ over conversations of p log(p / q); the transition probabilities cancel."""
    total = 0.0
    for context, weight in enumerate(game.mdp.contexts[number]):
        where = (number, context)
        for p, pairs, _ in conversations(game, where, first):
            ratio = sum(
                first[turn][where][state, action] - second[turn][where][state, action]
                for turn, (state, action) in enumerate(pairs)
            )
            total += weight * p * ratio
    return total


def value(game: PreferenceGame, policy: Policy, opponent: Policy, place: tuple[int, int, int, int]) -> float:
    """V^{π,π'} of (game, context, turn, state): expected win minus α Σ KL over all continuations."""
    number, context, turn, state = place
    where = (number, context)
    wins = np.zeros(game.mdp.finals)
    for q, _, y in conversations(game, where, opponent):
        wins += q * game.preference[where][:, y]
    total = 0.0
    for p, pairs, x in conversations(game, where, policy, turn, state):
        price = sum(
            kl(policy[turn + later][where][visited], game.reference[turn + later][where][visited])
            for later, (visited, _) in enumerate(pairs)
        )
        total += p * (wins[x] - game.alpha[number] * price)
    return total
