"""Best responses and the equilibrium compared with numerical optimisation; convergence of the algorithms to it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from mtrl_ray.errors import DataError
from mtrl_ray.tabular import equilibrium, updates, values
from mtrl_ray.tabular.games import SHAPES, PreferenceGame, random_games, random_policy, sigmoid
from mtrl_ray.tabular.mdp import LayeredMDP, log_softmax
from mtrl_ray.tabular.reward_model import best_rlhf_policy, fit_bradley_terry
from tests.tabular import naive

SEED = st.integers(0, 2**31)


def rock_paper_scissors(alpha: float = 0.2, reference=(0.6, 0.3, 0.1)) -> PreferenceGame:
    """One turn; each action beats the next with probability 0.9."""
    mdp = LayeredMDP((np.eye(3)[None, None, None],), np.ones((1, 1)))
    preference = np.array([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])
    mu = (np.log(np.array(reference))[None, None, None],)
    return PreferenceGame(mdp, preference[None, None], mu, np.array([alpha]), ("cyclic",))


def optimised(game: PreferenceGame, opponent, sign: float) -> float:
    """max over π of sign · P_α, by a numerical optimiser over the logits of all turns in one vector; one game."""
    shapes = [layer.shape for layer in game.reference]
    sizes = np.cumsum([0, *[int(np.prod(shape)) for shape in shapes]])

    def policy(x):
        return tuple(
            log_softmax(x[a:b].reshape(shape)) for a, b, shape in zip(sizes[:-1], sizes[1:], shapes, strict=True)
        )

    def loss(x):
        pair = (policy(x), opponent) if sign > 0 else (opponent, policy(x))
        return -sign * float(values.regularised_preference(game, *pair)[0])

    start = np.concatenate([layer.ravel() for layer in game.reference])
    return -sign * minimize(loss, start, method="BFGS", options={"gtol": 1e-9}).fun


@pytest.mark.parametrize("index", range(len(naive.SMALL)))
def test_best_responses_are_what_an_optimiser_finds(index: int):
    game, rng = naive.small_games(index, seed=index, games=1)
    opponent = random_policy(game.mdp, rng)
    found, best = equilibrium.best_response(game, opponent)
    assert best[0] == pytest.approx(optimised(game, opponent, 1.0), abs=1e-8)
    assert best[0] == pytest.approx(values.regularised_preference(game, found, opponent)[0], abs=1e-13)
    assert equilibrium.worst_case(game, opponent)[0] == pytest.approx(optimised(game, opponent, -1.0), abs=1e-8)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(SHAPES), SEED)
def test_nobody_gains_by_leaving_the_equilibrium(shape, seed: int):
    rng = np.random.default_rng(seed)
    game = random_games(shape, 5, rng)
    star = equilibrium.nash_equilibrium(game)
    np.testing.assert_allclose(equilibrium.duality_gap(game, star), 0.0, atol=1e-13)
    for spread in (0.01, 3.0):
        other = random_policy(game.mdp, rng, spread)
        assert (values.regularised_preference(game, other, star) <= 0.5 + 1e-13).all()
        assert (equilibrium.duality_gap(game, other) > 0.0).all()


def test_the_equilibrium_is_found_if_regularisation_is_weak():
    game = random_games(SHAPES[1], 10, np.random.default_rng(5))
    weak = PreferenceGame(game.mdp, game.preference, game.reference, np.full(10, 0.01), game.kinds)
    assert equilibrium.duality_gap(weak, equilibrium.nash_equilibrium(weak)).max() < 1e-12


def test_a_solver_that_does_not_converge_is_an_error(monkeypatch):
    game = rock_paper_scissors()
    monkeypatch.setattr(equilibrium, "HALVINGS", 0)
    monkeypatch.setattr(equilibrium, "_newton", lambda game, alpha, finals: (finals, np.full((1, 1), 0.3)))
    with pytest.raises(DataError, match=r"game 0: the equilibrium is only known to 3\.0e-01; its alpha is 0\.2"):
        equilibrium.nash_equilibrium(game)


def test_rock_paper_scissors_has_the_equilibrium_of_its_symmetry():
    star = equilibrium.nash_equilibrium(rock_paper_scissors(reference=(1 / 3, 1 / 3, 1 / 3)))
    np.testing.assert_allclose(np.exp(star[0]), 1 / 3, atol=1e-14)
    nearly_free = equilibrium.nash_equilibrium(rock_paper_scissors(alpha=1e-3))
    np.testing.assert_allclose(np.exp(nearly_free[0]), 1 / 3, atol=5e-3)


@pytest.mark.parametrize("update", [updates.mtpo, updates.mtpo_tau, updates.nash_md])
def test_the_last_iterate_converges_and_plain_self_play_cycles(update):
    game = rock_paper_scissors()
    star = equilibrium.nash_equilibrium(game)
    start = (log_softmax(np.array([3.0, 0.0, -2.0])[None, None, None]),)
    *_, last = updates.iterates(game, update, 1000, start)
    assert values.trajectory_kl(game.mdp, star, last)[0] < 1e-6
    free, before = start, values.trajectory_kl(game.mdp, star, start)[0]
    for _ in range(1000):
        free = updates.mirror_step(free, values.preference_values(game, free, free).q, np.array([0.2]))
    assert values.trajectory_kl(game.mdp, star, free)[0] > before


def test_with_one_turn_nash_md_is_mtpo_tau_and_with_more_it_is_not():
    for index, same in ((0, True), (1, False)):
        game, rng = naive.small_games(index, seed=2)
        policy, eta = random_policy(game.mdp, rng), 0.4 / game.alpha
        pairs = zip(updates.mtpo_tau(game, policy, eta), updates.nash_md(game, policy, eta), strict=True)
        assert all(np.allclose(one, other, atol=1e-13) for one, other in pairs) == same


def test_the_mixture_interpolates_log_probabilities():
    game, rng = naive.small_games(1, seed=0)
    policy = random_policy(game.mdp, rng)
    for share, expected in ((0.0, policy), (1.0, game.reference)):
        mixed = updates.mixture(game, policy, share / game.alpha)
        assert all(np.allclose(one, other, atol=1e-14) for one, other in zip(mixed, expected, strict=True))
    halfway = updates.mixture(game, policy, 0.5 / game.alpha)[1][0, 0, 0]
    weights = np.sqrt(np.exp(policy[1][0, 0, 0]) * np.exp(game.reference[1][0, 0, 0]))
    np.testing.assert_allclose(np.exp(halfway), weights / weights.sum(), atol=1e-14)


def test_the_reward_model_is_the_most_likely_one():
    game, _ = naive.small_games(1, seed=4)
    finals = values.final_distribution(game.mdp, game.reference)
    fitted = fit_bradley_terry(game)
    for where in np.ndindex(finals.shape[:2]):
        weights = np.outer(finals[where], finals[where])

        def loss(r, weights=weights, wins=game.preference[where]):
            return -(weights * wins * np.log(sigmoid(r[:, None] - r[None, :]))).sum()

        found = minimize(loss, np.zeros(game.mdp.finals), method="BFGS", options={"gtol": 1e-10}).x
        np.testing.assert_allclose(fitted[where], found - finals[where] @ found, atol=2e-5)


def test_the_rlhf_policy_maximises_its_regularised_reward():
    game, rng = naive.small_games(2, seed=6)
    reward = fit_bradley_terry(game)

    def objective(policy):
        found = values.evaluate(game.mdp, policy, game.reference, game.alpha, reward)
        return game.mdp.average(found.v[0][:, :, 0])

    best = best_rlhf_policy(game, reward)
    for spread in (0.01, 1.0):
        nudged = tuple(log_softmax(layer + spread * rng.standard_normal(layer.shape)) for layer in best)
        assert (objective(nudged) < objective(best)).all()
