"""Passes over rows in minibatches: the one loop that every fit and every policy update runs."""

from collections.abc import Callable, Iterable

import numpy as np

from mtrl_ray.learner.operation import Numbers
from mtrl_ray.learner.rows.microbatches import balance
from mtrl_ray.learner.rows.packing import Rows
from mtrl_ray.learner.sections import Fit

SUMMED = ("skipped", "critic_skipped")
"""Statistics whose sum over the steps counts, not their mean."""


def minibatches(rows: Rows, generator: np.random.Generator, size: int) -> list[np.ndarray]:
    """One pass in random order: row numbers of minibatches of about `size` conversations and equally many tokens."""
    units = np.unique(rows.unit)
    return balance(rows, generator.permutation(units), -(-len(units) // size))


def run_epochs(
    rows: Rows, generator: np.random.Generator, fit: Fit, step: Callable[[np.ndarray], Numbers]
) -> list[Numbers]:
    """`fit.epochs` passes in minibatches of `fit.minibatch_conversations`; the results of the steps, in order.

    `step` gets the row numbers of a minibatch. The order depends only on the generator, so it is the same on every process.
    """
    history: list[Numbers] = []
    for _ in range(fit.epochs):
        history += [step(selection) for selection in minibatches(rows, generator, fit.minibatch_conversations)]
    return history


def means(history: Iterable[Numbers]) -> Numbers:
    """Mean of each statistic over the steps that have it; counts of skipped steps are summed."""
    values: dict[str, list[float]] = {}
    for step in history:
        for name, value in step.items():
            values.setdefault(name, []).append(value)
    return {name: float(np.sum(of) if name in SUMMED else np.mean(of)) for name, of in sorted(values.items())}
