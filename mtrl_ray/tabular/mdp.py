"""Finite-horizon contextual decision processes, in batches of one shape.

1. A turn is a layer: turn h has its own states, every state has the same number of actions, and an action leads to a
   state of the next layer. The first layer has one state per context; the states of the last one are finished
   conversations, without actions.
2. Arrays start with [games, contexts]. Contexts share no states; only averages over contexts combine them.
3. A policy is one array of finite log-probabilities [games, contexts, states, actions] per turn.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Policy = tuple[Array, ...]
"""Per turn: log-probabilities [games, contexts, states, actions]."""


@dataclass(frozen=True)
class LayeredMDP:
    """Transitions per turn, [games, contexts, states, actions, next states], and the probabilities of the contexts."""

    transitions: tuple[Array, ...]
    contexts: Array
    """[games, contexts]; each row sums to one."""

    @property
    def horizon(self) -> int:
        """Number of turns, H."""
        return len(self.transitions)

    @property
    def games(self) -> int:
        """Number of processes in the batch."""
        return len(self.contexts)

    @property
    def finals(self) -> int:
        """Number of final states per context."""
        return self.transitions[-1].shape[-1]

    def expected(self, turn: int, following: Array) -> Array:
        """E[f(s') | s, a] of a function of the next state: [games, contexts, next states] → [..., states, actions]."""
        return np.einsum("gcsat,gct->gcsa", self.transitions[turn], following)

    def average(self, by_context: Array) -> Array:
        """Expectation over contexts: [games, contexts] → [games]."""
        return np.einsum("gc,gc->g", self.contexts, by_context)


def log_softmax(logits: Array) -> Array:
    """Normalise log-weights over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_mean_exp(log_weights: Array, values: Array) -> Array:
    """`log Σ_a w_a exp(values_a)` over the last axis, for log-weights of a distribution."""
    terms = log_weights + values
    top = terms.max(axis=-1)
    return top + np.log(np.exp(terms - top[..., None]).sum(axis=-1))


def divergence(first: Array, second: Array) -> Array:
    """KL(first‖second) over the last axis of two arrays of log-probabilities.

    Computed as Σ p (e^δ − 1 − δ) with δ = log(second / first). Every term is non-negative, so nothing cancels if the
    two are close, and divergences far below the rounding error of p log p are still accurate.
    """
    delta = second - first
    near = np.abs(delta) < 0.5
    small = np.where(near, delta, 0.0)
    close = np.exp(first) * (np.expm1(small) - small)
    apart = np.exp(second) - np.exp(first) * (1.0 + delta)
    return np.where(near, close, apart).sum(axis=-1)
