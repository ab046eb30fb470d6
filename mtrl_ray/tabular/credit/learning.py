"""Training with one scheme, for all step sizes and seeds at once: PPO's clipped surrogate on whitened advantages, with Adam."""

from dataclasses import dataclass

import numpy as np

from mtrl_ray.tabular.credit.schemes import Adam, Make, parts, score_gradient
from mtrl_ray.tabular.credit.task import Draws, Task, first_logits, hold, log_softmax, pick, right
from mtrl_ray.tabular.mdp import Array

CONTEXTS, SAMPLES = 16, 8
"""Of an iteration, as in the studies."""
CLIP = 0.2
RATES = (0.03, 0.1, 0.3, 1.0)
"""Step sizes: every scheme is shown with the best of its own."""


@dataclass(frozen=True)
class Curves:
    """`right`: exact probability of a right answer before each iteration and after the last, [iterations + 1, rates, seeds];
    `numbers`: means over the iterations of the scheme's metrics, [rates, seeds]."""

    right: Array
    numbers: dict[str, Array]

    @property
    def areas(self) -> Array:
        """Mean of the curve, [rates, seeds]."""
        return self.right.mean(axis=0)

    @property
    def best(self) -> int:
        """The step size with the largest mean area."""
        return int(self.areas.mean(axis=1).argmax())


def train(task: Task, make: Make, seeds: range, iterations: int) -> Curves:
    """Train a policy for each of `RATES` and seeds."""
    rates = np.array(RATES)
    logits = np.stack([[first_logits(seed) for seed in seeds]] * len(rates))
    generators = [np.random.default_rng([seed, 1]) for seed in seeds]
    scheme, adam = make(logits.copy(), rates, task.turns), Adam(logits, rates)
    curve, kept = [right(logits)], list[dict[str, Array]]()
    for _ in range(iterations):
        talks = hold(task, logits, Draws.make(generators, CONTEXTS, SAMPLES, task.turns))
        advantages = whiten(scheme.advantages(talks))
        for part in parts(CONTEXTS):
            ratio = np.exp(pick(log_softmax(logits), talks.types, talks.answers) - talks.logprobs)
            inside = np.where(advantages > 0, ratio < 1 + CLIP, ratio > 1 - CLIP)
            weights = -advantages * ratio * inside / advantages[0, 0, part].size
            logits = adam.descend(logits, score_gradient(logits, talks, weights, part))
        curve.append(right(logits))
        kept.append(scheme.numbers)
    return Curves(np.stack(curve), {name: np.mean([one[name] for one in kept], axis=0) for name in kept[0]})


def whiten(advantages: Array) -> Array:
    """To mean 0 and variance 1 over each batch; a batch without spread is zero."""
    axes = (2, 3, 4)
    centred = advantages - advantages.mean(axis=axes, keepdims=True)
    deviation = centred.std(axis=axes, keepdims=True)
    return np.where(deviation > 1e-9, centred / np.maximum(deviation, 1e-9), 0.0)
