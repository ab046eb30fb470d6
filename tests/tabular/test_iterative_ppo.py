"""Policy iteration, the two directions of the penalty, and the regression of Q, each compared with its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from mtrl_ray.tabular import discounted
from mtrl_ray.tabular.games import Shape
from mtrl_ray.tabular.mdp import log_softmax
from mtrl_ray.tabular.monte_carlo import exact_moments, monte_carlo_q, random_process

SEED = st.integers(0, 2**31)


def test_values_and_occupancies_are_sums_over_time():
    rng = np.random.default_rng(0)
    mdp = discounted.random_processes(4, rng)
    policy = discounted.random_stationary_policy(mdp, rng)
    v, q = discounted.evaluate(mdp, policy)
    occupancy = discounted.occupancy(mdp, policy)
    for number in range(mdp.games):
        gamma = mdp.discount[number]
        moves = np.einsum("sa,sat->st", np.exp(policy[number]), mdp.transitions[number])
        where, total, visits = np.eye(len(moves)), np.zeros(len(moves)), np.zeros(moves.shape)
        for time in range(800):
            visits += (1.0 - gamma) * gamma**time * where
            where = where @ moves
            total += gamma**time * where @ mdp.reward[number]
        np.testing.assert_allclose(v[number], total, atol=1e-12)
        np.testing.assert_allclose(occupancy[number], visits, atol=1e-12)
        backed_up = mdp.transitions[number] @ (mdp.reward[number] + gamma * total)
        np.testing.assert_allclose(q[number], backed_up, atol=1e-12)


def test_a_conversation_gets_its_reward_once():
    mdp = discounted.random_processes(4, np.random.default_rng(1))
    best = discounted.optimal_values(mdp)
    conversations = np.arange(4) % 2 == 1
    assert (best[conversations, -2:] == 0.0).all()
    assert (best[conversations] <= 1.0).all() and (best[conversations, :-2] > 0.0).all()


def test_the_optimum_satisfies_bellmans_equation():
    mdp = discounted.random_processes(10, np.random.default_rng(2))
    best = discounted.optimal_values(mdp)
    np.testing.assert_allclose(mdp.backup(best).max(axis=-1), best, atol=1e-12)


@pytest.mark.parametrize("penalty", discounted.PENALTIES, ids=lambda penalty: penalty.name)
def test_the_improved_policy_is_what_an_optimiser_finds(penalty):
    rng = np.random.default_rng(3)
    policy, q = log_softmax(rng.standard_normal((3, 2, 4))), rng.standard_normal((3, 2, 4))
    beta = np.array([0.05, 0.3, 2.0])
    objective = penalty.objective(penalty.best(policy, q, beta), policy, q, beta)
    for game, state in np.ndindex(objective.shape):

        def loss(x, game=game, state=state):
            one = (slice(game, game + 1), slice(state, state + 1))
            return -penalty.objective(log_softmax(x)[None, None], policy[one], q[one], beta[game : game + 1])[0, 0]

        best = -minimize(loss, policy[game, state], method="BFGS", options={"gtol": 1e-9}).fun
        assert objective[game, state] == pytest.approx(best, abs=1e-7)


@settings(max_examples=40, deadline=None)
@given(SEED, st.floats(-3.0, 2.0), st.floats(0.0, 6.0))
def test_the_reciprocal_step_beats_every_other_policy(seed: int, log_beta: float, spread: float):
    rng = np.random.default_rng(seed)
    penalty = discounted.PENALTIES[1]
    policy, q = log_softmax(spread * rng.standard_normal((20, 1, 3))), rng.standard_normal((20, 1, 3))
    beta = np.full(20, 10.0**log_beta)
    new = penalty.best(policy, q, beta)
    np.testing.assert_allclose(np.exp(new).sum(axis=-1), 1.0, atol=1e-12)
    reached = penalty.objective(new, policy, q, beta)
    for other in (policy, log_softmax(new + 0.1 * rng.standard_normal(new.shape))):
        assert (reached >= penalty.objective(other, policy, q, beta) - 1e-12).all()


@pytest.mark.parametrize("penalty", discounted.PENALTIES, ids=lambda penalty: penalty.name)
def test_theorem_2_needs_its_allowance_for_a_wrong_q(penalty):
    rng = np.random.default_rng(4)
    mdp = discounted.random_processes(20, rng)
    policy, beta = discounted.random_stationary_policy(mdp, rng), np.full(20, 0.05)
    v, q = discounted.evaluate(mdp, policy)
    misleading = q - 0.1 * np.sign(q - v[..., None])
    new = penalty.best(policy, misleading, beta)
    improvement = discounted.expectation(new, q - v[..., None]) - beta[:, None] * penalty.between(new, policy)
    assert -0.2 - 1e-12 <= improvement.min() < -0.02


SHAPE = Shape("layered", horizon=3, actions=2, states=3, finals=3)


def test_deviations_of_the_regression_are_standard_errors():
    rng = np.random.default_rng(5)
    process, policy = random_process(SHAPE, 10, rng)
    scores = []
    for estimate, turn in zip(monte_carlo_q(process, policy, 5000, rng), exact_moments(process, policy), strict=True):
        seen = (estimate.visits > 300) & (turn.variance > 1e-6)
        scores.append(((estimate.mean - turn.q) * np.sqrt(estimate.visits / turn.variance))[seen])
    squares = np.concatenate(scores) ** 2
    assert len(squares) > 100
    assert squares.mean() == pytest.approx(1.0, abs=5.0 * np.sqrt(2.0 / len(squares)))


def test_moments_are_those_of_all_conversations():
    process, policy = random_process(
        Shape("layered", horizon=2, actions=2, states=2, finals=2), 1, np.random.default_rng(6)
    )
    gamma, (first, second) = process.discount, process.mdp.transitions
    moments = exact_moments(process, policy)
    for context, action in np.ndindex(first.shape[1], first.shape[3]):
        outcomes = []
        for middle, reply, final in np.ndindex(2, 2, 2):
            probability = (
                first[0, context, 0, action, middle]
                * np.exp(policy[1][0, context, middle, reply])
                * second[0, context, middle, reply, final]
            )
            outcomes.append(
                (probability, process.rewards[0][0, context, middle] + gamma * process.rewards[1][0, context, final])
            )
        mean = sum(p * g for p, g in outcomes)
        assert moments[0].q[0, context, 0, action] == pytest.approx(mean, abs=1e-13)
        spread = sum(p * (g - mean) ** 2 for p, g in outcomes)
        assert moments[0].variance[0, context, 0, action] == pytest.approx(spread, abs=1e-13)


def test_returns_of_another_policy_give_another_q():
    rng = np.random.default_rng(7)
    process, policy = random_process(SHAPE, 5, rng)
    other = tuple(log_softmax(-3.0 * layer) for layer in policy)
    estimate, turn = monte_carlo_q(process, other, 5000, rng)[0], exact_moments(process, policy)[0]
    missed = np.abs(estimate.mean - turn.q) > turn.tolerance(estimate.visits, 20.0, 3.0)
    assert missed.any()
