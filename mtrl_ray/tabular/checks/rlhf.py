"""Multi-turn RLHF compared with the preference game: what a reward model can represent, and what it cannot."""

import numpy as np

from mtrl_ray.tabular import updates
from mtrl_ray.tabular.checks.suite import Check, Suite, verdict
from mtrl_ray.tabular.equilibrium import duality_gap
from mtrl_ray.tabular.games import PreferenceGame, sigmoid
from mtrl_ray.tabular.mdp import Array
from mtrl_ray.tabular.reward_model import best_rlhf_policy, fit_bradley_terry
from mtrl_ray.tabular.values import trajectory_kl

TEMPERATURES = 2.0 ** np.arange(-4, 6)
"""Multiples of the game's α; RLHF gets the best one in hindsight, per game."""


def bradley_terry_recovered(suite: Suite) -> Check:
    """If preferences are Bradley-Terry, the fitted reward recovers them."""
    errors, games = [], 0
    for game in suite.batches:
        ordered = game.of_kind("bradley_terry") | game.of_kind("contextual")
        reward = fit_bradley_terry(game)
        predicted = sigmoid(reward[..., :, None] - reward[..., None, :])
        errors.append(np.abs(predicted - game.preference)[ordered].max())
        games += int(ordered.sum())
    return verdict("bradley_terry_recovered", max(errors), 1e-9, games)


def rlhf_optimum(suite: Suite) -> Check:
    """The RLHF update converges to the best policy for its reward: KL_p after a thousand iterations."""
    errors = []
    for game in suite.batches:
        reward = fit_bradley_terry(game)
        *_, last = updates.iterates(game, updates.rlhf(reward), suite.steps)
        errors.append(trajectory_kl(game.mdp, best_rlhf_policy(game, reward), last).max())
    return verdict("rlhf_optimum", max(errors), 1e-5, suite.games)


def rlhf_exploitable(suite: Suite) -> Check:
    """On cyclic preferences RLHF, at its best temperature, stays more exploitable: duality gap of MTPO / that of RLHF."""
    ratios = []
    for game, run in zip(suite.batches, suite.mtpo, strict=True):
        cyclic = game.of_kind("cyclic")
        ratios.append(run.gap[-1][cyclic] / rlhf_gap(game)[cyclic])
    ratio = np.concatenate(ratios)
    return verdict("rlhf_exploitable", ratio.max(), 0.1, len(ratio))


def rlhf_gap(game: PreferenceGame) -> Array:
    """Duality gap of the limit of RLHF at the best of `TEMPERATURES`, [games]."""
    reward = fit_bradley_terry(game)
    gaps = [duality_gap(game, best_rlhf_policy(game, reward, scale * game.alpha)) for scale in TEMPERATURES]
    return np.min(gaps, axis=0)
