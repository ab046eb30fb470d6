"""Regression of a value model on targets at the items of rows: agent tokens, or the states before agent turns.

The loss is half the squared error in units of the model's scale, which follows the targets (`ValueModel.calibrate`).
"""

import numpy as np
from torch import Tensor

from mtrl_ray.learner.compute.core import Core, LossFunction, Outputs, means, run_epochs
from mtrl_ray.learner.operation import Numbers
from mtrl_ray.learner.rows.packing import Rows
from mtrl_ray.learner.sections import Fit

BINS = 10
"""Of the calibration error, with equally many predictions each."""


def regress(core: Core, name: str, rows: Rows, targets: np.ndarray, fit: Fit) -> Numbers:
    """Fit a value model; `targets` float32 [items]. Returns means over the steps: `loss`, `gradient_norm`, `skipped`."""
    core.calibrate(name, targets)
    wanted, unit = core.tensor(targets), core.models.value(name).unit

    def step(selection: np.ndarray) -> Numbers:
        loss = squared_error(wanted, unit, len(rows.items_of(selection)))
        return core.update(name, rows, selection, loss, fit.step)

    return means(run_epochs(rows, core.generator(f"fit_{name}"), fit, step))


def squared_error(targets: Tensor, unit: float, count: int) -> LossFunction:
    """Half the squared error in units of `unit`, a mean over the minibatch's `count` items."""

    def loss(outputs: Outputs, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        total = 0.5 * ((outputs["values"] - targets[items]) / unit).square().sum() / count
        return total, {"loss": total}

    return loss


def explained_variance(predictions: Tensor, targets: Tensor) -> float:
    """1 - Var(targets - predictions) / Var(targets); 0 if the targets do not vary."""
    variance = float(targets.var(correction=0))
    return 1.0 - float((targets - predictions).var(correction=0)) / variance if variance > 0 else 0.0


def calibration_error(predictions: np.ndarray, outcomes: np.ndarray) -> float:
    """Mean absolute difference of mean prediction and mean outcome over `BINS` bins of equally many predictions."""
    order = np.argsort(predictions, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    gaps = [abs(float(predictions[part].mean() - outcomes[part].mean())) * len(part) for part in parts]
    return sum(gaps) / len(order)
