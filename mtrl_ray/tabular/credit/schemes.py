"""Advantages of turns from the outcomes of a batch, by scheme: [rates, seeds, contexts, samples, turns].

1. `outcome`: all turns share it. `exact`: what each turn added to the share. `value`: TD errors of a value model. `itpo-β`: the
   implicit rewards of a process reward model beside the outcome; `norm_itpo-β`: the outcome split by the softmax of these.
2. A turn is credited with its own and all later rewards, less the mean of the same of the context's other samples. With
   `-own` it is credited with its own reward alone.
3. `ppo`: GAE over turns with λ = 0.9 from the value model, no group.
4. The value model is linear in the number of the turn, what was found so far and the type of the question, which is all that
   matters; it predicts a batch before it is fitted on it, on batches that fade by `FADING`. The process reward model has the
   policy's shape and takes one step per minibatch, before it scores, as in 2603.23550.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from mtrl_ray.tabular.credit.task import ANSWERS, TYPES, Talks, log_softmax, pick
from mtrl_ray.tabular.mdp import Array

LAMBDA = 0.9
ETA = 0.4
"""Temperature of Norm-ITPO's softmax, as the system's default."""
FADING, RIDGE = 0.8, 1.0
BETAS = (0.05, 0.3, 1.0)
PRM_RATE = 0.1
"""Step size of the process reward model, whatever the policy's: of 0.003 to 0.1 the best for the schemes that use it."""
MINIBATCHES = 4


class Scheme(Protocol):
    """Advantages of a batch. `numbers`: metrics by name, [rates, seeds]."""

    numbers: dict[str, Array]

    def advantages(self, talks: Talks) -> Array:
        """Of the batch, before whitening; what the scheme learns from the batch, it learns now."""


Make = Callable[[Array, Array, int], Scheme]
"""(first logits [rates, seeds, types, answers], step sizes [rates], turns) → scheme."""


def to_go(rewards: Array) -> Array:
    """Each turn's own and all later rewards."""
    return np.cumsum(rewards[..., ::-1], axis=-1)[..., ::-1]


def left_one_out(values: Array) -> Array:
    """Less the mean of the context's other samples, on axis 3."""
    count = values.shape[3]
    return (values - values.mean(axis=3, keepdims=True)) * count / (count - 1)


def at_end(outcomes: Array, turns: int) -> Array:
    """The outcome on the last turn."""
    return outcomes[..., None] * (np.arange(turns) == turns - 1)


class Adam:
    """Adam with a step size per rate; its state is [rates, seeds, types, answers]."""

    def __init__(self, like: Array, rates: Array) -> None:
        self.first, self.second, self.step = np.zeros_like(like), np.zeros_like(like), 0
        self.rates = rates[:, None, None, None]

    def descend(self, parameters: Array, gradient: Array) -> Array:
        """The parameters after a step."""
        self.step += 1
        self.first += 0.1 * (gradient - self.first)
        self.second += 0.001 * (gradient**2 - self.second)
        mean, square = self.first / (1 - 0.9**self.step), self.second / (1 - 0.999**self.step)
        return parameters - self.rates * mean / (np.sqrt(square) + 1e-8)


def score_gradient(logits: Array, talks: Talks, weights: Array, part: slice) -> Array:
    """Gradient of Σ weight · log π(answer) over a part of the contexts, by the logits."""
    rates, seeds = logits.shape[:2]
    size = TYPES * ANSWERS
    types, answers, held = (x[:, :, part].reshape(rates * seeds, -1) for x in (talks.types, talks.answers, weights))
    offset = np.arange(rates * seeds)[:, None] * size
    index = (offset + types * ANSWERS + answers).ravel()
    said = np.bincount(index, held.ravel(), rates * seeds * size).reshape(logits.shape)
    return said - np.exp(log_softmax(logits)) * said.sum(axis=-1, keepdims=True)


def parts(contexts: int) -> list[slice]:
    """The minibatches of a batch: equal parts of its contexts."""
    size = contexts // MINIBATCHES
    return [slice(size * number, size * (number + 1)) for number in range(MINIBATCHES)]


class Shared:
    """`outcome` and `exact`: rewards that the conversation itself gives."""

    def __init__(self, exact: bool, own: bool) -> None:
        self.exact, self.own, self.numbers = exact, own, dict[str, Array]()

    def advantages(self, talks: Talks) -> Array:
        """See `Scheme`."""
        turns = talks.found.shape[-1]
        rewards = talks.found / turns if self.exact else at_end(talks.outcomes, turns)
        return left_one_out(rewards if self.own else to_go(rewards))


class Valued:
    """`value` and `ppo`: the TD errors of a value model as rewards against the group, or GAE of them."""

    def __init__(self, shape: tuple[int, int], turns: int, gae: bool, own: bool) -> None:
        size = turns + 1 + TYPES
        self.gae, self.own, self.numbers = gae, own, dict[str, Array]()
        self.squares = np.broadcast_to(np.eye(size) * RIDGE, (*shape, size, size)).copy()
        self.products = np.zeros((*shape, size))

    def advantages(self, talks: Talks) -> Array:
        """See `Scheme`."""
        inputs = self._inputs(talks)
        targets = np.broadcast_to(talks.outcomes[..., None], talks.found.shape).reshape(*inputs.shape[:3])
        weights = np.linalg.solve(self.squares, self.products[..., None])
        values = (inputs @ weights)[..., 0].reshape(talks.found.shape)
        self.squares = FADING * self.squares + np.swapaxes(inputs, 2, 3) @ inputs
        self.products = FADING * self.products + (np.swapaxes(inputs, 2, 3) @ targets[..., None])[..., 0]
        errors = np.concatenate([values[..., 1:], talks.outcomes[..., None]], axis=-1) - values
        if not self.gae:
            return left_one_out(errors if self.own else to_go(errors))
        advantages = np.zeros_like(errors)
        following = np.zeros(errors.shape[:-1])
        for turn in reversed(range(errors.shape[-1])):
            following = errors[..., turn] + LAMBDA * following
            advantages[..., turn] = following
        return advantages

    def _inputs(self, talks: Talks) -> Array:
        rates, seeds, _, _, turns = talks.found.shape
        number = np.broadcast_to(np.eye(turns), (*talks.found.shape, turns))
        before = (np.cumsum(talks.found, axis=-1) - talks.found)[..., None] / turns
        joined = np.concatenate([number, before, np.eye(TYPES)[talks.types]], axis=-1)
        return joined.reshape(rates, seeds, -1, joined.shape[-1])


class Implicit:
    """`itpo` and `norm_itpo`, with a process reward model of temperature β."""

    def __init__(self, first: Array, rates: Array, beta: float, normalised: bool, own: bool) -> None:
        self.beta, self.normalised, self.own, self.numbers = beta, normalised, own, dict[str, Array]()
        self.reference = log_softmax(first)
        self.logits, self.adam = first.copy(), Adam(first, np.full(len(rates), PRM_RATE))

    def advantages(self, talks: Talks) -> Array:
        """See `Scheme`."""
        self.numbers = {"pair_accuracy": pair_accuracy(self._rewards(talks).sum(axis=-1), talks.outcomes)}
        for part in parts(talks.types.shape[2]):
            sums = self._rewards(talks).sum(axis=-1, keepdims=True)
            slope = self.beta * (1 / (1 + np.exp(-sums)) - talks.outcomes[..., None])
            count = talks.outcomes[0, 0, part].size
            weights = np.broadcast_to(slope / count, talks.found.shape)
            self.logits = self.adam.descend(self.logits, score_gradient(self.logits, talks, weights, part))
        rewards = self._rewards(talks)
        rewards = rewards / (np.abs(to_go(rewards)).max(axis=(2, 3, 4), keepdims=True) + 1e-6)
        if self.normalised:
            weights = np.exp(rewards / ETA)
            rewards = talks.outcomes[..., None] * weights / weights.sum(axis=-1, keepdims=True)
        else:
            rewards = rewards + at_end(talks.outcomes, rewards.shape[-1])
        return left_one_out(rewards if self.own else to_go(rewards))

    def _rewards(self, talks: Talks) -> Array:
        return pick(self.beta * (log_softmax(self.logits) - self.reference), talks.types, talks.answers)


def pair_accuracy(sums: Array, outcomes: Array) -> Array:
    """How often the better of two samples of a context has the larger sum, weighted by how much better, [rates, seeds].

    Equal sums are right half of the time."""
    ahead = outcomes[..., :, None] - outcomes[..., None, :]
    larger = 0.5 + 0.5 * np.sign(sums[..., :, None] - sums[..., None, :])
    agrees = larger * np.maximum(ahead, 0.0)
    total = np.maximum(ahead, 0.0).sum(axis=(2, 3, 4))
    return np.where(total > 0, agrees.sum(axis=(2, 3, 4)) / np.where(total > 0, total, 1.0), 0.5)


def schemes() -> dict[str, Make]:
    """All of them, by name; `outcome` is what the others are compared with."""
    made: dict[str, Make] = {
        "outcome": lambda first, rates, turns: Shared(exact=False, own=False),
        "exact": lambda first, rates, turns: Shared(exact=True, own=False),
        "exact-own": lambda first, rates, turns: Shared(exact=True, own=True),
        "value": lambda first, rates, turns: Valued(first.shape[:2], turns, gae=False, own=False),
        "value-own": lambda first, rates, turns: Valued(first.shape[:2], turns, gae=False, own=True),
        "ppo": lambda first, rates, turns: Valued(first.shape[:2], turns, gae=True, own=False),
    }
    for beta in BETAS:
        for name, normalised, own in (
            ("itpo", False, False),
            ("norm_itpo", True, False),
            ("norm_itpo-own", True, True),
        ):
            made[f"{name}-{beta:g}"] = _implicit(beta, normalised, own)
    return made


def _implicit(beta: float, normalised: bool, own: bool) -> Make:
    return lambda first, rates, turns: Implicit(first, rates, beta, normalised, own)
