"""The study `mtpo_cyclic` as an exact game: lessons of 7 messages, each with one of three manners or with none.

A state counts how often each manner was used. Preferences are those of `mtrl_envs.education.conduct` at `cyclic: 1`. There
is no student, because these preferences ignore the student. μ uses the manners as often as the study's warm-started policy.
"""

import itertools

import numpy as np
import pytest

from mtrl_envs.education.conduct import cycle
from mtrl_ray.tabular.equilibrium import nash_equilibrium
from mtrl_ray.tabular.games import PreferenceGame, sigmoid
from mtrl_ray.tabular.mdp import LayeredMDP, Policy
from mtrl_ray.tabular.reward_model import best_rlhf_policy, fit_bradley_terry
from mtrl_ray.tabular.updates import learning_rate, mtpo
from mtrl_ray.tabular.values import final_distribution, trajectory_kl, win_probability

MESSAGES = 7
REFERENCE = (0.58, 0.11, 0.14, 0.17)
"""Probabilities of lecturing, questioning, coaching, and none of them."""
SHARPNESS = 10.0


def counted(messages: int) -> list[tuple[int, ...]]:
    """The states after `messages` messages."""
    return [counts for counts in itertools.product(range(messages + 1), repeat=4) if sum(counts) == messages]


SHARES = np.array([counts[:3] for counts in counted(MESSAGES)]) / MESSAGES
"""[finals, 3]"""


def circle(alpha: float) -> PreferenceGame:
    layers = [counted(messages) for messages in range(MESSAGES + 1)]
    transitions = [np.zeros((1, 1, len(now), 4, len(then))) for now, then in itertools.pairwise(layers)]
    for moves, (now, then) in zip(transitions, itertools.pairwise(layers), strict=True):
        for (state, counts), action in itertools.product(enumerate(now), range(4)):
            following = tuple(count + (other == action) for other, count in enumerate(counts))
            moves[0, 0, state, action, then.index(following)] = 1.0
    margins = [[cycle(one, other) + one.sum() - other.sum() for other in SHARES] for one in SHARES]
    reference = tuple(np.broadcast_to(np.log(REFERENCE), (1, 1, len(now), 4)) for now in layers[:-1])
    mdp = LayeredMDP(tuple(transitions), np.ones((1, 1)))
    return PreferenceGame(
        mdp, sigmoid(SHARPNESS * np.array(margins))[None, None], reference, np.array([alpha]), ("cyclic",)
    )


def exploitability(game: PreferenceGame, policy: Policy) -> float:
    """Win rate of the best response without a KL penalty, which can reach any final state with certainty."""
    return float(win_probability(game, final_distribution(game.mdp, policy)).max())


def shares(game: PreferenceGame, policy: Policy) -> np.ndarray:
    return final_distribution(game.mdp, policy)[0, 0] @ SHARES


@pytest.mark.parametrize(("alpha", "wins", "nats"), [(0.05, 0.696, 2.96), (0.02, 0.578, 3.26), (0.01, 0.540, 3.30)])
def test_a_smaller_alpha_makes_the_regularised_equilibrium_harder_to_beat(alpha: float, wins: float, nats: float):
    game = circle(alpha)
    equilibrium = nash_equilibrium(game)
    assert exploitability(game, equilibrium) == pytest.approx(wins, abs=5e-4)
    assert trajectory_kl(game.mdp, equilibrium, game.reference)[0] == pytest.approx(nats, abs=5e-3)
    assert shares(game, equilibrium).min() > 0.22


def test_mtpo_converges_to_the_equilibrium_and_rlhf_does_not():
    game = circle(0.05)
    policy = game.reference
    for step in range(1, 400):
        policy = mtpo(game, policy, learning_rate(game.alpha, step))
    np.testing.assert_allclose(shares(game, policy), shares(game, nash_equilibrium(game)), atol=5e-3)
    rewarded = best_rlhf_policy(game, fit_bradley_terry(game), np.array([0.2]))
    assert exploitability(game, policy) < 0.71
    assert exploitability(game, rewarded) > 0.95 and exploitability(game, game.reference) > 0.95
