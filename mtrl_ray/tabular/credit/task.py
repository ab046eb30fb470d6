"""Conversations of independent turns, sampled for many policies at once.

Leading axes of all arrays are [rates, seeds]: a policy for each step size and seed. Then come [contexts, samples, turns].
Samples of one context are asked the same questions.
"""

from dataclasses import dataclass

import numpy as np

from mtrl_ray.tabular.mdp import Array

TYPES, ANSWERS = 24, 6
"""Types of questions, and answers to each; answer 0 is right."""
SPREAD = 1.0
"""Standard deviation of the first policy's logits."""


@dataclass(frozen=True)
class Task:
    """`turns` of a conversation; `noise`: how often a right answer is lost; `drawn`: whether the outcome is a draw."""

    turns: int
    noise: float
    drawn: bool

    @property
    def name(self) -> str:
        """For tables: `12 turns, noise 0.3, drawn`."""
        return f"{self.turns} turns, noise {self.noise:g}, {'drawn' if self.drawn else 'share'}"


@dataclass(frozen=True)
class Draws:
    """An iteration's random numbers: `types`, int [seeds, contexts, 1, turns]; `answers`, `lost`, uniform [seeds, contexts,
    samples, turns]; `outcomes`, uniform [seeds, contexts, samples]."""

    types: np.ndarray
    answers: Array
    lost: Array
    outcomes: Array

    @classmethod
    def make(cls, generators: list[np.random.Generator], contexts: int, samples: int, turns: int) -> "Draws":
        """The next numbers of each seed's generator."""
        made = [
            (
                g.integers(TYPES, size=(contexts, 1, turns)),
                g.random((2, contexts, samples, turns)),
                g.random((contexts, samples)),
            )
            for g in generators
        ]
        types, uniform, outcomes = (np.stack(parts) for parts in zip(*made, strict=True))
        return cls(types, uniform[:, 0], uniform[:, 1], outcomes)


@dataclass(frozen=True)
class Talks:
    """A batch. `types`, `answers`: int; `found`: the right answers that counted, 0 or 1; `logprobs` of the answers: all
    [rates, seeds, contexts, samples, turns]; `outcomes`: [rates, seeds, contexts, samples]."""

    types: np.ndarray
    answers: np.ndarray
    found: Array
    logprobs: Array
    outcomes: Array


def first_logits(seed: int) -> Array:
    """The first policy of a seed, [types, answers]: it knows nothing."""
    return np.random.default_rng([seed, 0]).normal(0.0, SPREAD, (TYPES, ANSWERS))


def log_softmax(logits: Array) -> Array:
    """Log-probabilities over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def right(logits: Array) -> Array:
    """The exact probability to answer right, averaged over types; [...] of [..., types, answers]."""
    return np.exp(log_softmax(logits))[..., 0].mean(axis=-1)


def pick(table: Array, types: np.ndarray, answers: np.ndarray) -> Array:
    """`table[rate, seed, type, answer]` for each turn; table: [rates, seeds, types, answers]."""
    rates, seeds = table.shape[:2]
    flat = table.reshape(rates, seeds, -1)
    index = (types * ANSWERS + answers).reshape(rates, seeds, -1)
    return np.take_along_axis(flat, index, axis=2).reshape(types.shape)


def hold(task: Task, logits: Array, draws: Draws) -> Talks:
    """Conversations of every policy on the same questions; logits: [rates, seeds, types, answers]."""
    logprobs = log_softmax(logits)
    rates, seeds = logits.shape[:2]
    types = np.broadcast_to(draws.types, (rates, *draws.answers.shape))
    below = np.cumsum(np.exp(logprobs), axis=-1)[..., :-1]
    chosen = np.zeros(types.shape, dtype=np.int64)
    rate, seed = np.ogrid[:rates, :seeds]
    for answer in range(ANSWERS - 1):
        bound = below[..., answer][rate[..., None], seed[..., None], types.reshape(rates, seeds, -1)]
        chosen += draws.answers > bound.reshape(types.shape)
    found = ((chosen == 0) & (draws.lost >= task.noise)).astype(float)
    share = found.mean(axis=-1)
    outcomes = (draws.outcomes < share).astype(float) if task.drawn else share
    return Talks(types, chosen, found, pick(logprobs, types, chosen), outcomes)
