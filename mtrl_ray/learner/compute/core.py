"""What every operation works with: models by name, passes over rows, and random numbers.

- `evaluate` runs a model at all items of the rows, without gradients. It returns arrays by item number, whole on every process.
  What frozen models compute for the same rows is kept (`reference_cache`).
- `update` takes one optimiser step on some of the rows. A loss function gets the outputs (`logprobs` and `entropies` of a
  policy, `values` of a value model) and the numbers of the items. It returns a scalar and statistics, each divided by
  denominators of the *whole* minibatch, so that micro-batches and processes add up to it. `run_epochs` goes over all rows.
- The caller chooses the rows of a minibatch, the same ones on every process; they are divided among the processes here.
- On a CPU everything is float32. On a GPU parameters, gradients and optimiser states are float32; with `dtype` bfloat16 the
  layers compute under autocast in bfloat16.
- Random numbers come from the seed, the name of the stream and the number of earlier draws. They do not depend on the number
  of processes, and a checkpoint only has to keep the counters.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtrl_ray.errors import CheckpointError
from mtrl_ray.learner.compute.collective import Collective
from mtrl_ray.learner.compute.models import POLICY, Model, Models
from mtrl_ray.learner.compute.optimisation import Optimiser, Step
from mtrl_ray.learner.compute.reference_cache import ReferenceCache
from mtrl_ray.learner.compute.references import References
from mtrl_ray.learner.rows.minibatches import MicroBatch, assemble, minibatches, share
from mtrl_ray.learner.rows.packing import BRANCH_TOKENS, Rows
from mtrl_ray.learner.sections import Fit
from mtrl_ray.models.inputs import reads_trees
from mtrl_ray.models.policy import ForwardOptions, PolicyReader

Outputs = dict[str, Tensor]
"""A model's outputs at the items, float32 [reads] each."""

LossFunction = Callable[[Outputs, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""(outputs, item numbers int64 [reads]) to (loss, statistics); it has to accept empty tensors."""

Statistics = dict[str, float]
"""The numbers of one step, by name."""

SUMMED = ("skipped", "critic_skipped")
"""Statistics whose sum over the steps counts, not their mean."""


class Core:
    """Models, passes and randomness of one learner process.

    `dtype` and `temperature` are the sampler's: with them the learner computes the log-probabilities of what was sampled.
    `budget`: padded tokens of a micro-batch. `branch_tokens` is 0 if the model cannot read trees: every response is then a
    sequence of its own. `fitted`: hashes of the conversations that Q has been fitted on.
    """

    def __init__(
        self, models: Models, dtype: str, budget: int, collective: Collective, seed: int, temperature: float = 1.0
    ) -> None:
        self.models, self.dtype, self.budget, self.collective = models, dtype, budget, collective
        self.seed, self.temperature = seed, temperature
        self.device = models.device
        self.branch_tokens = BRANCH_TOKENS if reads_trees(models.policy.decoder, self.device) else 0
        self.references = References(models, exact=dtype == "float32" and self.device.type == "cpu")
        self.counters: Counter[str] = Counter()
        self.fitted: set[int] = set()
        self._cache = ReferenceCache()

    def model(self, name: str) -> Model:
        """A model by name; the two references are created if missing. Raises ConfigurationError for an unknown name."""
        self.references.require(name)
        return self.models.get(name)

    def evaluate(
        self, name: str, rows: Rows, options: ForwardOptions | None = None, selection: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """The model's outputs at the items of some or all rows, float32 [items] each, by item number; 0 at other items.

        Raises EngineError if another process is gone.
        """
        model, options = self.model(name), options or ForwardOptions()
        if isinstance(model, PolicyReader) and self.models.is_frozen(name) and selection is None:
            return self._cache.get(model, rows, options, lambda: self.forward(model, rows, options))
        return self.forward(model, rows, options, selection)

    @torch.no_grad()
    def forward(
        self, model: Model, rows: Rows, options: ForwardOptions, selection: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """`evaluate` for any model, always computed."""
        names = model.outputs
        merged = np.zeros((len(names), len(rows.items)), dtype=np.float32)
        for batch in self._mine(rows, np.arange(len(rows)) if selection is None else selection):
            outputs = self._read(model, batch, options)
            merged[:, batch.items.cpu().numpy()] = torch.stack([outputs[name] for name in names]).cpu().numpy()
        return dict(zip(names, self.collective.merge(merged), strict=True))

    @torch.no_grad()
    def read_policy(
        self, rows: Rows, options: ForwardOptions, wanted: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """`evaluate` for the policy, and its last hidden states at the slots of the items `wanted` (int64 [wanted]): float32
        [wanted, width].

        Raises EngineError if another process is gone.
        """
        model = self.models.policy
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
        name: str,
        rows: Rows,
        selection: np.ndarray,
        loss: LossFunction,
        step: Step,
        options: ForwardOptions | None = None,
    ) -> Statistics:
        """One step of a model on the rows of `selection`: the statistics, `gradient_norm`, `skipped`. Raises EngineError."""
        if name == POLICY:
            self.references.before_policy_step()
        return self.descend(self.model(name), self.models.optimiser(name), rows, selection, loss, step, options)

    def descend(
        self,
        model: Model,
        optimiser: Optimiser,
        rows: Rows,
        selection: np.ndarray,
        loss: LossFunction,
        step: Step,
        options: ForwardOptions | None = None,
    ) -> Statistics:
        """`update` for any model and optimiser; nothing is noted about the policy."""
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

    def _read(self, model: Model, batch: MicroBatch, options: ForwardOptions) -> Outputs:
        with self._precision():
            if isinstance(model, PolicyReader):
                outputs: Outputs = model(
                    batch.inputs, batch.slots, batch.targets, options.temperature, options.entropy_gradient
                )
            else:
                outputs = model(batch.inputs, batch.slots)
        return outputs

    def _precision(self) -> AbstractContextManager[None]:
        if self.device.type == "cuda" and self.dtype == "bfloat16":
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    def _nothing(self, loss: LossFunction) -> dict[str, Tensor]:
        """The statistics of a process that has no rows in this minibatch: the same names, all zero."""
        empty = torch.zeros(0, device=self.device)
        outputs = {"logprobs": empty, "entropies": empty, "values": empty}
        return loss(outputs, empty.long())[1]

    def generator(self, stream: str) -> np.random.Generator:
        """The next generator of a stream."""
        self.counters[stream] += 1
        return np.random.default_rng([self.seed, zlib.crc32(stream.encode()), self.counters[stream]])

    def tensor(self, values: np.ndarray) -> Tensor:
        """A copy on the learner's device (Arrow's memory is read-only)."""
        return torch.from_numpy(np.array(values)).to(self.device)

    def calibrate(self, name: str, targets: np.ndarray) -> None:
        """See `ValueModel.calibrate`."""
        if len(targets):
            self.models.value(name).calibrate(float(np.mean(targets)), float(np.std(targets)))

    def state(self) -> dict[str, Any]:
        """Counters as JSON values; they determine randomness and staleness."""
        return {"counters": dict(self.counters), "seed": self.seed, **self.references.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`. Raises CheckpointError if it belongs to a run with another seed."""
        if state["seed"] != self.seed:
            raise CheckpointError(
                f"this learner's seed is {self.seed}, the checkpoint's {state['seed']}; they must agree"
            )
        self.counters = Counter(state["counters"])
        self.references.restore(state)


def run_epochs(
    rows: Rows, generator: np.random.Generator, fit: Fit, step: Callable[[np.ndarray], Statistics]
) -> list[Statistics]:
    """`fit.epochs` passes in minibatches of `fit.minibatch_conversations`; the results of the steps, in order.

    `step` gets the row numbers of a minibatch. The order depends only on the generator, so it is the same on every process.
    """
    history: list[Statistics] = []
    for _ in range(fit.epochs):
        history += [step(selection) for selection in minibatches(rows, generator, fit.minibatch_conversations)]
    return history


def means(history: Iterable[Statistics]) -> Statistics:
    """Mean of each statistic over the steps that have it; counts of skipped steps are summed."""
    values: dict[str, list[float]] = {}
    for step in history:
        for name, value in step.items():
            values.setdefault(name, []).append(value)
    return {name: float(np.sum(of) if name in SUMMED else np.mean(of)) for name, of in sorted(values.items())}
