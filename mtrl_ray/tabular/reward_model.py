"""The reward model of RLHF in the limit of infinite data: Bradley-Terry by maximum likelihood, and its best policy.

1. Pairs of conversations come from the reference and are labelled by P(x ≻ y). The reward r of the final states maximises
   Σ_xy d(x) d(y) P(x ≻ y) log σ(r_x − r_y), a concave function, by Newton's method. It is normalised to Σ_x d(x) r_x = 0.
2. If the preference is Bradley-Terry, σ(r_x − r_y) is the preference. If not, r is the maximum-likelihood fit to it.
"""

import numpy as np

from mtrl_ray.tabular.games import PreferenceGame, sigmoid
from mtrl_ray.tabular.mdp import Array, Policy
from mtrl_ray.tabular.values import best_policy, final_distribution


def fit_bradley_terry(game: PreferenceGame, steps: int = 60) -> Array:
    """Fit r, [games, contexts, finals], to preferences between conversations of the reference."""
    finals = final_distribution(game.mdp, game.reference)
    pairs = finals[..., :, None] * finals[..., None, :]
    reward = np.zeros(finals.shape)
    for _ in range(steps):
        predicted = sigmoid(reward[..., :, None] - reward[..., None, :])
        slope = (pairs * (game.preference - predicted)).sum(axis=-1)
        curvature = pairs * predicted * (1.0 - predicted)
        hessian = np.eye(game.mdp.finals) * curvature.sum(axis=-1)[..., None] - curvature
        # Adding d dᵀ fixes the constant that the likelihood leaves open: every step keeps Σ d r = 0.
        step = np.linalg.solve(hessian + pairs, slope[..., None])[..., 0]
        reward = reward + step * np.minimum(1.0, 1.0 / np.maximum(np.abs(step).max(axis=-1, keepdims=True), 1e-300))
        if np.abs(step).max() < 1e-13:
            break
    return reward - np.einsum("gcx,gcx->gc", finals, reward)[..., None]


def best_rlhf_policy(game: PreferenceGame, reward: Array, alpha: Array | None = None) -> Policy:
    """The limit of RLHF: the policy that maximises E r − α KL_p(π‖μ). `alpha`: [games], by default the game's."""
    return best_policy(game.mdp, game.reference, game.alpha if alpha is None else alpha, reward)[0]
