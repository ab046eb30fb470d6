"""Forward and backward passes over rows: the two primitives of every operation.

1. `evaluate` runs a model at all items of the rows, without gradients: arrays by item number, whole on every process.
2. `update` takes one optimiser step on some of the rows. A loss function gets the outputs (`logprobs` and `entropies` of a
   policy, `values` of a value model) and the numbers of the items, and returns a scalar and statistics, each already
   divided by denominators of the *whole* minibatch: micro-batches and processes then add up to it.
3. Which rows make a minibatch is the caller's choice and the same on every process; this module assigns the rows to processes.
4. float32 on CPU. On a GPU parameters, gradients and optimiser states are float32; with `dtype` bfloat16 the layers
   compute under autocast in bfloat16, with float32 in float32.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtrl_ray.learner.compute.collective import Collective
from mtrl_ray.learner.compute.optimisation import Optimiser
from mtrl_ray.learner.rows.microbatches import MicroBatch, assemble, share
from mtrl_ray.learner.rows.packing import Rows
from mtrl_ray.models.policy import PolicyReader
from mtrl_ray.models.value import ValueModel

Outputs = dict[str, Tensor]
"""A model's outputs at the items, float32 [reads] each."""

LossFunction = Callable[[Outputs, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""(outputs, item numbers int64 [reads]) to (loss, statistics); it has to accept empty tensors."""


@dataclass(frozen=True)
class ForwardOptions:
    """How a policy is evaluated: the sampler's temperature, and whether entropies carry a gradient."""

    temperature: float = 1.0
    entropy_gradient: bool = False


@dataclass(frozen=True)
class Step:
    """One optimiser step: learning rate and the bound of the gradient's norm (None: none)."""

    learning_rate: float
    max_norm: float | None = 1.0


class Passes:
    """Runs models over rows on one device, as one of several processes."""

    def __init__(self, device: torch.device, dtype: str, budget: int, collective: Collective) -> None:
        self.device, self.collective = device, collective
        self.budget = budget
        self._half = device.type == "cuda" and dtype == "bfloat16"

    @torch.no_grad()
    def evaluate(
        self,
        model: PolicyReader | ValueModel,
        rows: Rows,
        options: ForwardOptions | None = None,
        selection: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """The model's outputs at the items of some or all rows, float32 [items] each, by item number; 0 at other items.

        Raises EngineError if a partner is gone.
        """
        names = model.outputs
        merged = np.zeros((len(names), len(rows.items)), dtype=np.float32)
        for batch in self._mine(rows, np.arange(len(rows)) if selection is None else selection):
            outputs = self._read(model, batch, options or ForwardOptions())
            merged[:, batch.items.cpu().numpy()] = torch.stack([outputs[name] for name in names]).cpu().numpy()
        return dict(zip(names, self.collective.merge(merged), strict=True))

    @torch.no_grad()
    def read_policy(
        self, model: PolicyReader, rows: Rows, options: ForwardOptions, wanted: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """`evaluate`, and the last hidden states at the slots of the items `wanted` (int64 [wanted]): float32 [wanted, width].

        Raises EngineError if a partner is gone.
        """
        merged = np.zeros((len(model.outputs), len(rows.items)), dtype=np.float32)
        hidden = np.zeros((len(wanted), model.width), dtype=np.float32)
        for batch in self._mine(rows, np.arange(len(rows))):
            with self._precision():
                states = model.states(batch.inputs, batch.slots)
                outputs = model.read(batch.inputs, batch.slots, states, batch.targets, options.temperature, False)
            items = batch.items.cpu().numpy()
            merged[:, items] = torch.stack([outputs[name] for name in model.outputs]).cpu().numpy()
            slot = np.full(len(rows.items), -1, dtype=np.int64)
            slot[items] = np.arange(len(items))
            here = slot[wanted] >= 0
            hidden[here] = states[torch.from_numpy(slot[wanted[here]]).to(states.device)].float().cpu().numpy()
        outputs_by_name = dict(zip(model.outputs, self.collective.merge(merged), strict=True))
        return outputs_by_name, self.collective.merge(hidden)

    def update(
        self,
        model: PolicyReader | ValueModel,
        optimiser: Optimiser,
        rows: Rows,
        selection: np.ndarray,
        loss: LossFunction,
        step: Step,
        options: ForwardOptions | None = None,
    ) -> dict[str, float]:
        """One step on the rows of `selection`: the statistics, `gradient_norm`, `skipped`. Raises EngineError."""
        optimiser.clear()
        sums: dict[str, Tensor] = {}
        for batch in self._mine(rows, selection):
            value, statistics = loss(self._read(model, batch, options or ForwardOptions()), batch.items)
            value.backward()
            sums = {name: entry.detach() + sums.get(name, 0.0) for name, entry in statistics.items()}
        if not sums:
            sums = self._nothing(loss)
        return optimiser.step(step.learning_rate, step.max_norm, sums, self.collective)

    def _mine(self, rows: Rows, selection: np.ndarray) -> Iterator[MicroBatch]:
        for part in share(rows, selection, self.collective.rank, self.collective.world, self.budget):
            yield assemble(rows, part, self.device)

    def _read(self, model: PolicyReader | ValueModel, batch: MicroBatch, options: ForwardOptions) -> Outputs:
        with self._precision():
            if isinstance(model, PolicyReader):
                outputs: Outputs = model(
                    batch.inputs, batch.slots, batch.targets, options.temperature, options.entropy_gradient
                )
            else:
                outputs = model(batch.inputs, batch.slots)
        return outputs

    def _precision(self) -> AbstractContextManager[None]:
        if self._half:
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    def _nothing(self, loss: LossFunction) -> dict[str, Tensor]:
        """The statistics of a process that has no rows in this minibatch: the same names, all zero."""
        empty = torch.zeros(0, device=self.device)
        outputs = {"logprobs": empty, "entropies": empty, "values": empty}
        return loss(outputs, empty.long())[1]
