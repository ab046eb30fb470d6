"""Iterative PPO (2511.21638): policy improvement with exact, noisy and sampled Q."""

import math
from functools import partial

import numpy as np

from mtrl_ray.tabular.checks.suite import Check, Suite, verdict
from mtrl_ray.tabular.discounted import (
    PENALTIES,
    DiscountedMDP,
    Penalty,
    evaluate,
    expectation,
    exponential_step,
    occupancy,
    optimal_values,
    random_processes,
    random_stationary_policy,
)
from mtrl_ray.tabular.games import SHAPES
from mtrl_ray.tabular.mdp import Array, log_softmax
from mtrl_ray.tabular.monte_carlo import exact_moments, monte_carlo_q, random_process

EXACT = 1e-12
ITERATIONS = 100
CONVERSATIONS = 6000
"""Conversations per game from which Q is fitted."""
FALSE_ALARM = 1e-6
"""Probability that the Monte Carlo check fails although the statement is true."""


def performance_difference(suite: Suite) -> Check:
    """V^π'(s) − V^π(s) = 1/(1−γ) E_{x∼d^π'(·|s)} E_{π'} A^π(x, ·) from every start s."""
    name = "performance_difference"
    mdp, policy, _ = _processes(suite, name)
    other = random_stationary_policy(mdp, suite.rng(f"{name} other"))
    v, q = evaluate(mdp, policy)
    advantage = expectation(other, q - v[..., None])
    gained = np.einsum("gsx,gx->gs", occupancy(mdp, other), advantage) / (1.0 - mdp.discount)[:, None]
    return verdict(name, np.abs(evaluate(mdp, other)[0] - v - gained).max(), EXACT, mdp.games)


def monotone_improvement(suite: Suite) -> Check:
    """With the exact Q no iteration lowers V in any state (theorem 1), for either direction of the KL penalty."""
    name, fall = "monotone_improvement", 0.0
    mdp, start, beta = _processes(suite, name)
    for penalty in PENALTIES:
        policy, before = start, evaluate(mdp, start)[0]
        for _ in range(ITERATIONS):
            policy = penalty.best(policy, evaluate(mdp, policy)[1], beta)
            after = evaluate(mdp, policy)[0]
            fall, before = max(fall, float((before - after).max())), after
    return verdict(name, fall, EXACT, mdp.games)


def reaches_the_optimum(suite: Suite) -> Check:
    """V* − V_k ≤ [β E_{d*} log 1/π_0(a*|·) + E_{d*}(V* − V_0)] / ((1−γ)(k+1)): ratio of the two sides, in every state."""
    ratios = (gaps / bounds for gaps, bounds in zip(*improvement_curve(suite), strict=True))
    return verdict("reaches_the_optimum", max(float(ratio.max()) for ratio in ratios), 1.0, suite.games)


def improvement_curve(suite: Suite) -> tuple[list[Array], list[Array]]:
    """V* − V_k and its bound over `ITERATIONS` of `π' ∝ π exp(Q/β)`, [games, states] each.

    The bound is the analysis of natural policy gradient by Agarwal et al. (JMLR 2021), with KL(π*‖π_0) for log|A|:
    `E_π* A = β [KL(π*‖π_k) − KL(π*‖π_{k+1})] + β log E_π exp(A/β)`, the second term is at most V_{k+1} − V_k on average
    over d*, and V_k never decreases.
    """
    mdp, policy, beta = _processes(suite, "reaches_the_optimum")
    best = optimal_values(mdp)
    actions = mdp.backup(best).argmax(axis=-1)
    ideal = np.where(np.arange(policy.shape[-1]) == actions[..., None], 0.0, -np.inf)
    from_here = occupancy(mdp, ideal)
    distance = -np.take_along_axis(policy, actions[..., None], axis=-1)[..., 0]
    numerator = beta[:, None] * distance + best - evaluate(mdp, policy)[0]
    scale = np.einsum("gsx,gx->gs", from_here, numerator) / (1.0 - mdp.discount)[:, None]
    gaps, bounds = [], []
    for iteration in range(ITERATIONS):
        v, q = evaluate(mdp, policy)
        gaps.append(best - v)
        bounds.append(scale / (iteration + 1) + EXACT)
        policy = exponential_step(policy, q, beta)
    return gaps, bounds


def noisy_improvement(penalty: Penalty, suite: Suite) -> Check:
    """Theorem 2, E_π' A^π ≥ β KL − δ − 2ε, for ‖Q̂ − Q‖∞ ≤ ε and a π' that misses the optimum of its objective by δ."""
    name = f"noisy_improvement {penalty.name}"
    mdp, policy, beta = _processes(suite, name)
    rng = suite.rng(f"{name} noise")
    v, q = evaluate(mdp, policy)
    advantage = q - v[..., None]
    worst = -np.inf
    for noise in _noises(advantage, rng):
        epsilon = np.abs(noise).max(axis=(1, 2))
        best = penalty.best(policy, q + noise, beta)
        for slack in (0.0, 0.2, 0.8):
            new = log_softmax((1.0 - slack) * best + slack * random_stationary_policy(mdp, rng))
            reached = penalty.objective(new, policy, q + noise, beta)
            delta = np.maximum(penalty.objective(best, policy, q + noise, beta) - reached, 0.0)
            promised = beta[:, None] * penalty.between(new, policy) - delta - 2.0 * epsilon[:, None]
            worst = max(worst, float((promised - expectation(new, advantage)).max()))
    return verdict(name, worst, EXACT, mdp.games)


NOISY = tuple(partial(noisy_improvement, penalty) for penalty in PENALTIES)
"""Theorem 2 in both directions of the penalty."""


def monte_carlo_regression(suite: Suite) -> Check:
    """Regression on sampled returns recovers the exact Q: largest deviation of a pair, over its statistical tolerance."""
    name = "monte_carlo_regression"
    rng = suite.rng(name)
    shape = next(shape for shape in SHAPES if shape.structure == "layered")
    games = min(suite.games, 20)
    process, policy = random_process(shape, games, rng)
    moments = exact_moments(process, policy)
    level = math.log(2.0 * sum(turn.q.size for turn in moments) / FALSE_ALARM)
    largest = sum(process.discount**turn for turn in range(shape.horizon))
    estimates = monte_carlo_q(process, policy, CONVERSATIONS, rng)
    ratios = [
        (np.abs(estimate.mean - turn.q) / turn.tolerance(estimate.visits, level, largest)).max()
        for estimate, turn in zip(estimates, moments, strict=True)
    ]
    return verdict(name, max(ratios), 1.0, games)


def _processes(suite: Suite, name: str) -> tuple[DiscountedMDP, Array, Array]:
    """Random processes, a policy, and β log-uniform in [0.05, 1]."""
    rng = suite.rng(name)
    mdp = random_processes(suite.games, rng)
    return mdp, random_stationary_policy(mdp, rng), np.exp(rng.uniform(np.log(0.05), 0.0, mdp.games))


def _noises(advantage: Array, rng: np.random.Generator) -> list[Array]:
    """No noise; random noise of three sizes; and the worst case, which makes good actions look bad and bad ones good."""
    random = [size * rng.uniform(-1.0, 1.0, advantage.shape) for size in (0.0, 0.01, 0.1, 1.0)]
    return [*random, -0.1 * np.sign(advantage)]
