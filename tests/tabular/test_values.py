"""Recursions and enumeration of the exact games compared with loops over conversations written from the definitions."""

import decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrl_ray.tabular import trajectories, values
from mtrl_ray.tabular.games import KINDS, SHAPES, is_cyclic, random_games, random_policy, random_preference
from mtrl_ray.tabular.mdp import divergence, log_softmax
from tests.tabular import naive

SHAPE, SEED = st.integers(0, len(naive.SMALL) - 1), st.integers(0, 2**31)


@settings(max_examples=12, deadline=None)
@given(SHAPE, SEED)
def test_preferences_and_divergences_are_those_of_all_conversations(index: int, seed: int):
    game, rng = naive.small_games(index, seed, games=2)
    first, second = random_policy(game.mdp, rng), random_policy(game.mdp, rng)
    wins = [naive.preference(game, first, second, number) for number in range(game.games)]
    distances = [naive.trajectory_kl(game, first, second, number) for number in range(game.games)]
    for module in (values, trajectories):
        np.testing.assert_allclose(module.preference(game, first, second), wins, atol=1e-13)
        np.testing.assert_allclose(module.trajectory_kl(game.mdp, first, second), distances, atol=1e-13)


@settings(max_examples=12, deadline=None)
@given(SHAPE, SEED)
def test_v_and_q_are_expectations_over_all_continuations(index: int, seed: int):
    game, rng = naive.small_games(index, seed, games=1)
    policy, opponent = random_policy(game.mdp, rng), random_policy(game.mdp, rng)
    found = values.preference_values(game, policy, opponent)
    for turn, (q, v) in enumerate(zip(found.q, found.v, strict=False)):
        for context, state in np.ndindex(v.shape[1:]):
            expected = naive.value(game, policy, opponent, (0, context, turn, state))
            assert v[0, context, state] == pytest.approx(expected, abs=1e-13)
            following = [
                naive.value(game, policy, opponent, (0, context, turn + 1, later))
                for later in range(game.mdp.transitions[turn].shape[-1])
            ]
            price = game.alpha[0] * naive.kl(policy[turn][0, context, state], game.reference[turn][0, context, state])
            backed_up = game.mdp.transitions[turn][0, context, state] @ following - price
            np.testing.assert_allclose(q[0, context, state], backed_up, atol=1e-13)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SHAPES), SEED)
def test_games_are_well_formed(shape, seed: int):
    game = random_games(shape, len(KINDS), np.random.default_rng(seed))
    for layer, log_probabilities in zip(game.mdp.transitions, game.reference, strict=True):
        np.testing.assert_allclose(layer.sum(axis=-1), 1.0, atol=1e-13)
        np.testing.assert_allclose(np.exp(log_probabilities).sum(axis=-1), 1.0, atol=1e-13)
    np.testing.assert_allclose(game.mdp.contexts.sum(axis=1), 1.0, atol=1e-13)
    np.testing.assert_allclose(game.preference + np.swapaxes(game.preference, -1, -2), 1.0, atol=1e-15)
    assert ((game.preference > 0) & (game.preference < 1)).all()
    assert is_cyclic(game.preference[game.of_kind("cyclic")]).all()
    for kind in ("bradley_terry", "contextual"):
        assert not is_cyclic(game.preference[game.of_kind(kind)]).any()
    assert game.alpha.min() >= 0.1 and game.alpha.max() <= 1.0


def test_the_same_seed_gives_the_same_games():
    first, second, other = (random_games(SHAPES[1], 5, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first.preference, second.preference)
    assert all(np.array_equal(*layers) for layers in zip(first.mdp.transitions, second.mdp.transitions, strict=True))
    assert not np.array_equal(first.preference, other.preference)


def test_only_contextual_preferences_depend_on_the_context():
    rng = np.random.default_rng(0)
    for kind in KINDS:
        one, other = random_preference(kind, 2, 5, rng)
        np.testing.assert_allclose(other, one.T if kind == "contextual" else one, atol=1e-15)
    with pytest.raises(ValueError, match="unknown kind of preference 'elo'"):
        random_preference("elo", 2, 5, rng)


def test_flipped_answers_shrink_towards_one_half():
    margins = np.abs(random_preference("noisy", 1, 6, np.random.default_rng(0)) - 0.5)
    assert margins.max() < 0.4


def exact_divergence(first: np.ndarray, second: np.ndarray) -> float:
    """KL of two normalised vectors of log-weights, in sixty digits."""
    with decimal.localcontext(prec=60):
        logs = [[decimal.Decimal(float(entry)) for entry in vector] for vector in (first, second)]
        p, q = ([entry - sum(other.exp() for other in vector).ln() for entry in vector] for vector in logs)
        return float(sum(one.exp() * (one - other) for one, other in zip(p, q, strict=True)))


@settings(max_examples=40, deadline=None)
@given(SEED, st.floats(-10.0, 1.5))
def test_small_divergences_are_accurate(seed: int, magnitude: float):
    rng = np.random.default_rng(seed)
    first = log_softmax(rng.standard_normal(4))
    second = log_softmax(first + 10.0**magnitude * rng.standard_normal(4))
    assert float(divergence(first, second)) == pytest.approx(exact_divergence(first, second), rel=1e-5, abs=1e-27)
