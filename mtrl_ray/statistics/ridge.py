"""Linear regression with a ridge penalty, whose strength is chosen by what it predicts of targets that it was not fitted on."""

from dataclasses import dataclass

import numpy as np

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Penalties that are tried, in units of the number of features, which are standardised: with 1, as many observations as there
are features have about half of their say."""
LEAST_DEVIATION = 1e-3
"""Added to a feature's deviation: one that hardly varies is not blown up."""


@dataclass(frozen=True)
class Ridge:
    """`intercept + (features - mean) / scale · weights`; `strength`: of the penalty, in units of the number of features."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    intercept: float
    strength: float

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Predictions, float32 [observations]; features: [observations, features]."""
        return (self.intercept + (features - self.mean) / self.scale @ self.weights).astype(np.float32)


def fit(features: np.ndarray, targets: np.ndarray, folds: np.ndarray) -> tuple[Ridge, np.ndarray]:
    """The regression, and the prediction of every target by one that was not fitted on its fold.

    features: [observations, features]; targets: [observations]; folds: integer [observations], negative for observations that
    are in every fit: these have no such prediction, NaN, and do not judge the strengths. Returns (ridge, float32
    [observations]). Needs at least one observation; without two folds to compare, the middle strength is taken and each
    prediction is the mean of the targets.
    """
    names = np.unique(folds[folds >= 0])
    held = np.full((len(STRENGTHS), len(targets)), np.nan)
    if len(names) > 1:
        for name in names:
            out = folds == name
            path = _path(features[~out], targets[~out])
            held[:, out] = [one(features[out]) for one in path]
        errors = np.nanmean(np.square(held - targets), axis=1)
        best = int(errors.argmin())
    else:
        held[:, folds >= 0] = targets.mean()
        best = len(STRENGTHS) // 2
    return _path(features, targets)[best], held[best].astype(np.float32)


def _path(features: np.ndarray, targets: np.ndarray) -> list[Ridge]:
    """The regression with each of `STRENGTHS`, from one decomposition.

    It is of the features' covariances, not of the features: several times as fast with many observations, and the digits that
    squaring costs lie far below the smallest penalty.
    """
    mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64) + LEAST_DEVIATION
    intercept = float(targets.mean(dtype=np.float64))
    standardised = (features - mean) / scale
    variances, directions = np.linalg.eigh(standardised.T @ standardised)
    along = directions.T @ (standardised.T @ (targets - intercept))
    return [
        Ridge(mean, scale, directions @ (along / (variances + strength * features.shape[1])), intercept, strength)
        for strength in STRENGTHS
    ]
