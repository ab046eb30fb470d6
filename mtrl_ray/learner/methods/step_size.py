"""How far one update moves the policy: measured when its steps are done, and shortened if that is too far.

Adam's steps have the size of the learning rate whatever the advantages are, so how far a batch's steps lead depends on the
model, the batch and the noise. `bounded` is a backtracking line search, as in TRPO (1502.05477, appendix C), after the steps
of any optimiser: on the straight line between the weights before and after the steps, the policy goes back until it is near
enough.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.compute.models import POLICY
from mtrl_ray.learner.operation import Numbers
from mtrl_ray.learner.rows.packing import Rows
from mtrl_ray.models.policy import ForwardOptions

MEASURED = 64
"""Conversations, drawn at random, on whose tokens the distance is measured."""
RATIO_BOUND = 10.0
"""Largest ratio π/π_old of a token in the estimate: a rare token that became likely would otherwise be all of it."""
TRIES = 6
"""Of shortening, each to a quarter at the least; the last is taken."""


@contextmanager
def bounded(
    core: Core, rows: Rows, old: Tensor, weights: Tensor, limit: float | None, generator: np.random.Generator
) -> Iterator[Numbers]:
    """Around an update's steps. Afterwards the yielded numbers have `kl_update`, the nats per token between the policies before
    and after them (after shortening, if any), and `step_fraction`, the share of the way that was kept.

    old: log π_old of each item, weights: its importance weight, float32 [items]; limit: of `kl_update`; None: it is only
    measured.
    """
    units = np.unique(rows.unit)
    chosen = np.flatnonzero(np.isin(rows.unit, generator.permutation(units)[:MEASURED]))
    before = None if limit is None else [parameter.detach().clone() for parameter in _weights(core)]
    numbers: Numbers = {}
    yield numbers

    def distance() -> float:
        items = core.tensor(rows.items_of(chosen))
        now = core.tensor(core.evaluate(POLICY, rows, ForwardOptions(core.temperature), chosen)["logprobs"])[items]
        return estimated_kl(now, old[items], weights[items])

    kl, fraction = distance(), 1.0
    if before is not None and limit is not None:
        after = [parameter.detach().clone() for parameter in _weights(core)]
        for _ in range(TRIES):
            if kl <= limit:
                break
            fraction *= min(0.8, max(0.25, math.sqrt(limit / kl))) if math.isfinite(kl) else 0.25
            with torch.no_grad():
                for weight, start, end in zip(_weights(core), before, after, strict=True):
                    weight.copy_(torch.lerp(start, end, fraction))
            kl = distance()
    numbers |= {"kl_update": kl, "step_fraction": fraction}


def _weights(core: Core) -> list[Tensor]:
    return [parameter for parameter in core.models.policy.parameters() if parameter.requires_grad]


def estimated_kl(logprobs: Tensor, old: Tensor, weights: Tensor) -> float:
    """KL(π_old‖π) in nats per token, k3 with ratios up to `RATIO_BOUND`, on tokens that π_old sampled (with their importance
    weights). All float32 [tokens]."""
    change = (logprobs - old).clamp_max(math.log(RATIO_BOUND))
    return float(((torch.expm1(change) - change) * weights).sum() / weights.sum().clamp_min(1e-9))
