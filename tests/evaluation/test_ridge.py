"""Ridge regression against its normal equations, and what cross-validation makes of signal and of noise."""

import numpy as np

from mtrl_ray.statistics.ridge import LEAST_DEVIATION, STRENGTHS, fit


def data(seed: int, count: int, width: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((count, width)) * np.arange(1, width + 1) + 5.0
    return features, features[:, 0] - 0.2 * features[:, 1] + noise * generator.standard_normal(count)


def test_it_solves_the_normal_equations():
    features, targets = data(0, 50, 8, 0.5)
    found, _ = fit(features, targets, np.arange(50) % 5)
    scaled = (features - features.mean(axis=0)) / (features.std(axis=0) + LEAST_DEVIATION)
    penalty = found.strength * 8 * np.eye(8)
    weights = np.linalg.solve(scaled.T @ scaled + penalty, scaled.T @ (targets - targets.mean()))
    np.testing.assert_allclose(found.weights, weights, rtol=1e-8)
    np.testing.assert_allclose(found(features), targets.mean() + scaled @ weights, rtol=1e-5)


def test_a_prediction_never_saw_its_own_fold():
    features, targets = data(1, 40, 6, 1.0)
    folds = np.repeat([0, 1, 2, 3], 10)
    found, held = fit(features, targets, folds)
    changed = np.where(folds == 2, targets + 0.1 * np.random.default_rng(0).standard_normal(40), targets)
    again, others = fit(features, changed, folds)
    assert again.strength == found.strength
    np.testing.assert_allclose(held[folds == 2], others[folds == 2], rtol=1e-5)
    assert not np.allclose(held[folds != 2], others[folds != 2], rtol=1e-5)


def test_signal_gets_a_weak_penalty_and_noise_a_strong_one():
    features, targets = data(2, 200, 5, 0.01)
    clear, held = fit(features, targets, np.arange(200) % 4)
    assert clear.strength == STRENGTHS[0] and np.corrcoef(held, targets)[0, 1] > 0.99
    noise = np.random.default_rng(3).standard_normal(200)
    drowned, _ = fit(features, noise, np.arange(200) % 4)
    assert drowned.strength >= 10.0 and drowned(features).std() < 0.2 * noise.std()


def test_older_observations_help_and_are_not_judged():
    features, targets = data(4, 120, 6, 0.3)
    folds = np.concatenate([np.full(100, -1), np.arange(20) % 4])
    _, held = fit(features, targets, folds)
    assert np.isnan(held[:100]).all() and np.corrcoef(held[100:], targets[100:])[0, 1] > 0.9
    _, few = fit(features[100:], targets[100:], folds[100:])
    assert np.square(held[100:] - targets[100:]).mean() < np.square(few - targets[100:]).mean()


def test_one_fold_is_predicted_by_the_mean():
    features, targets = data(5, 10, 3, 0.1)
    found, held = fit(features, targets, np.zeros(10, dtype=int))
    assert found.strength == STRENGTHS[len(STRENGTHS) // 2]
    np.testing.assert_allclose(held, targets.mean(), rtol=1e-5)
