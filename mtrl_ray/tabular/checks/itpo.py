"""Implicit process rewards and turn weights (2603.23550)."""

import numpy as np

from mtrl_ray.tabular import implicit_prm
from mtrl_ray.tabular.checks.suite import Check, Suite, verdict

EXACT = 1e-12
TOKENS, LENGTH = 3, 6


def prefix_values(suite: Suite) -> Check:
    """Σ_{i≤t} r_i = β log E_{π_ref}[exp(r/β) | y_≤t] for every prefix of every implicit reward model, by enumeration."""
    name = "prefix_values"
    rng, beta = _start(suite, name)
    model, reference = (implicit_prm.random_model(suite.games, TOKENS, LENGTH, rng) for _ in range(2))
    sums = implicit_prm.prefix_sums(implicit_prm.token_rewards(model, reference, beta))
    enumerated = implicit_prm.prefix_values(reference, sums[-1], beta)
    errors = [np.abs(ours - theirs).max() for ours, theirs in zip(sums, enumerated, strict=True)]
    return verdict(name, max(errors), EXACT, suite.games)


def implicit_reward_of_an_outcome(suite: Suite) -> Check:
    """The model π ∝ π_ref exp(r/β) has Σ_{i≤t} r_i = value of the prefix − value of the empty prefix."""
    name = "implicit_reward_of_an_outcome"
    rng, beta = _start(suite, name)
    reference = implicit_prm.random_model(suite.games, TOKENS, LENGTH, rng)
    outcome = rng.uniform(0.0, 1.0, (suite.games, TOKENS**LENGTH))
    model = implicit_prm.tilted_model(reference, outcome, beta)
    sums = implicit_prm.prefix_sums(implicit_prm.token_rewards(model, reference, beta))
    values = implicit_prm.prefix_values(reference, outcome, beta)
    errors = [np.abs(total - (value - values[0])).max() for total, value in zip(sums, values, strict=True)]
    return verdict(name, max(errors), EXACT, suite.games)


def turn_rewards_sum(suite: Suite) -> Check:
    """Σ_k R_k = Σ_t r_t, and the turn rewards w_k R of Norm-ITPO sum to the outcome R."""
    name = "turn_rewards_sum"
    rng, _ = _start(suite, name)
    turns, tokens = 6, 24
    rewards = rng.standard_normal((suite.games, tokens))
    owners = np.sort(rng.integers(0, turns, rewards.shape), axis=1)
    scores = implicit_prm.turn_scores(rewards, owners, turns)
    errors = [np.abs(scores.sum(axis=1) - rewards.sum(axis=1)).max()]
    outcome = rng.uniform(0.0, 1.0, suite.games)
    for eta in (0.01, 0.4, 10.0):
        paid = implicit_prm.turn_weights(scores, eta) * outcome[:, None]
        errors.append(np.abs(paid.sum(axis=1) - outcome).max())
    return verdict(name, max(errors), EXACT, suite.games)


def _start(suite: Suite, name: str) -> tuple[np.random.Generator, np.ndarray]:
    """A generator and β [games], log-uniform in [0.05, 1]."""
    rng = suite.rng(name)
    return rng, np.exp(rng.uniform(np.log(0.05), 0.0, suite.games))
