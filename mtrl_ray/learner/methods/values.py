"""Regression of a value model on targets at the items of rows: agent tokens, or the states before agent turns.

The loss is half the squared error in units of the model's scale, which the first targets set (`ValueModel.calibrate`).
"""

import numpy as np
from torch import Tensor

from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.compute.models import Valued
from mtrl_ray.learner.compute.passes import LossFunction, Outputs, Step
from mtrl_ray.learner.methods.updates import means
from mtrl_ray.learner.rows.microbatches import balance
from mtrl_ray.learner.rows.packing import Rows
from mtrl_ray.learner.specification import ValueFit


def regress(core: Core, name: Valued, rows: Rows, targets: np.ndarray, spec: ValueFit) -> dict[str, float]:
    """Fit a value model; `targets` float32 [items]. Returns means over the steps: `loss`, `gradient_norm`, `skipped`."""
    if name == "q_target":
        raise ValueError("q_target follows q; it is not trained")
    core.calibrate(name, targets)
    found, unit = core.tensor(targets), core.models.value(name).unit
    generator = core.generator(f"fit_{name}")
    step = Step(spec.learning_rate, spec.max_gradient_norm)
    history = []
    for _ in range(spec.epochs):
        for selection in balance(rows, generator.permutation(np.unique(rows.unit)), spec.minibatches):
            count = len(rows.items_of(selection))
            history.append(core.update(name, rows, selection, squared_error(found, unit, count), step))
    return means(history)


def squared_error(targets: Tensor, unit: float, count: int) -> LossFunction:
    """Half the squared error in units of `unit`, a mean over the minibatch's `count` items."""

    def loss(outputs: Outputs, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        total = 0.5 * ((outputs["values"] - targets[items]) / unit).square().sum() / count
        return total, {"loss": total}

    return loss
