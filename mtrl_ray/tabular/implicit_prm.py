"""Implicit process rewards in a tree of tokens (2603.23550) that is small enough to enumerate the value of every prefix.

1. A tree has `actions` tokens in each position. A prefix of t tokens is one of actions^t states, and the next state is
   the prefix with the token appended. A language model is, per position, log-probabilities [games, prefixes, tokens].
2. r_t = β [log π_φ(y_t|y_<t) − log π_ref(y_t|y_<t)]; their sum along a prefix is its implicit value,
   Q(y_≤t) = β log E_{π_ref}[exp(r/β) | y_≤t], with r the sum over the whole sequence.
3. Turn k has the tokens T_k: R_k = Σ_{t∈T_k} r_t. Norm-ITPO gives it the reward w_k · R, w = softmax_k(R_k/η), R the outcome.
"""

import numpy as np

from mtrl_ray.tabular.mdp import Array, log_mean_exp, log_softmax

TokenModel = tuple[Array, ...]
"""Per position: log-probabilities [games, prefixes, tokens]."""


def random_model(games: int, tokens: int, length: int, rng: np.random.Generator) -> TokenModel:
    """A random model: standard normal logits for every prefix of up to `length` tokens."""
    return tuple(log_softmax(rng.standard_normal((games, tokens**position, tokens))) for position in range(length))


def token_rewards(model: TokenModel, reference: TokenModel, beta: Array) -> tuple[Array, ...]:
    """r_t of every token in every prefix, [games, prefixes, tokens] per position; beta: [games]."""
    scale = beta[:, None, None]
    return tuple(scale * (ours - theirs) for ours, theirs in zip(model, reference, strict=True))


def prefix_sums(rewards: tuple[Array, ...]) -> tuple[Array, ...]:
    """Σ_{i≤t} r_i of every prefix, [games, actions^t], for t = 0 … length."""
    sums = [np.zeros((len(rewards[0]), 1))]
    for step in rewards:
        sums.append((sums[-1][..., None] + step).reshape(len(step), -1))
    return tuple(sums)


def prefix_values(reference: TokenModel, outcome: Array, beta: Array) -> tuple[Array, ...]:
    """β log E_{π_ref}[exp(r/β) | y_≤t] for t = 0 … length, by enumerating the completions of every prefix.

    outcome: r of every sequence, [games, actions^length].
    """
    paths = prefix_sums(reference)
    games = len(outcome)
    values = []
    for log_prefix in paths:
        completions = (paths[-1].reshape(*log_prefix.shape, -1) - log_prefix[..., None]).reshape(*log_prefix.shape, -1)
        scaled = (outcome / beta[:, None]).reshape(games, log_prefix.shape[1], -1)
        values.append(beta[:, None] * log_mean_exp(completions, scaled))
    return tuple(values)


def tilted_model(reference: TokenModel, outcome: Array, beta: Array) -> TokenModel:
    """The model with π(y) ∝ π_ref(y) exp(r(y)/β), by backward recursion over positions."""
    model: list[Array] = []
    scaled = outcome / beta[:, None]
    for step in reversed(reference):
        branches = scaled.reshape(step.shape)
        scaled = log_mean_exp(step, branches)
        model.append(step + branches - scaled[..., None])
    return tuple(reversed(model))


def turn_scores(rewards: Array, turns: np.ndarray, count: int) -> Array:
    """R_k [sequences, count] from token rewards [sequences, tokens]; `turns` has the turn index of every token."""
    members = turns[..., None] == np.arange(count)
    return np.einsum("st,stk->sk", rewards, members)


def turn_weights(scores: Array, eta: float) -> Array:
    """w = softmax_k(R_k/η)."""
    return np.exp(log_softmax(scores / eta))
