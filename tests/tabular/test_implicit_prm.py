"""Implicit process rewards against loops over token sequences."""

import itertools

import numpy as np
import pytest
from scipy.special import logsumexp

from mtrl_ray.tabular import implicit_prm

TOKENS, LENGTH = 2, 4


def test_a_prefix_is_worth_the_log_mean_of_its_completions():
    rng = np.random.default_rng(0)
    beta = np.array([0.05, 0.7])
    model, reference = (implicit_prm.random_model(2, TOKENS, LENGTH, rng) for _ in range(2))
    sums = implicit_prm.prefix_sums(implicit_prm.token_rewards(model, reference, beta))

    def walk(entry: implicit_prm.TokenModel, game: int, tokens) -> float:
        place, total = 0, 0.0
        for position, token in enumerate(tokens):
            total += entry[position][game, place, token]
            place = place * TOKENS + token
        return total

    for game, length in itertools.product(range(2), range(LENGTH + 1)):
        for number, prefix in enumerate(itertools.product(range(TOKENS), repeat=length)):
            terms = []
            for rest in itertools.product(range(TOKENS), repeat=LENGTH - length):
                whole = prefix + rest
                reward = beta[game] * (walk(model, game, whole) - walk(reference, game, whole))
                terms.append(walk(reference, game, whole) - walk(reference, game, prefix) + reward / beta[game])
            assert sums[length][game, number] == pytest.approx(beta[game] * logsumexp(terms), abs=1e-12)


def test_the_tilted_model_weighs_sequences_by_their_outcome():
    rng = np.random.default_rng(1)
    beta = np.array([0.3])
    reference, outcome = implicit_prm.random_model(1, TOKENS, LENGTH, rng), rng.random((1, TOKENS**LENGTH))
    tilted = implicit_prm.prefix_sums(implicit_prm.tilted_model(reference, outcome, beta))[-1]
    weights = np.exp(implicit_prm.prefix_sums(reference)[-1] + outcome / 0.3)
    np.testing.assert_allclose(np.exp(tilted), weights / weights.sum(), atol=1e-14)


def test_turn_scores_are_sums_and_weights_a_softmax():
    rewards = np.array([[1.0, 2.0, 4.0, 8.0]])
    scores = implicit_prm.turn_scores(rewards, np.array([[0, 0, 2, 2]]), 3)
    np.testing.assert_allclose(scores, [[3.0, 0.0, 12.0]])
    weights = implicit_prm.turn_weights(scores, eta=3.0)
    np.testing.assert_allclose(weights, np.exp([[1.0, 0.0, 4.0]]) / (np.e + 1.0 + np.e**4), atol=1e-15)
