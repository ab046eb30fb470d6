"""What every operation works with: models by name, passes over rows, and randomness that depends on the seed alone.

1. `evaluate` and `update` are `passes` on models by name. An update of the policy makes its published weights outdated. What
   frozen models compute for the same rows is kept (`reference_cache`).
2. Random numbers come from (seed, name of the stream, number of earlier draws): they do not depend on the number of
   processes, and a checkpoint only has to remember counters.
"""

import zlib
from collections import Counter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mtrl_ray.errors import CheckpointError
from mtrl_ray.learner.compute.models import POLICY, Model, Models
from mtrl_ray.learner.compute.passes import ForwardOptions, LossFunction, Passes, Step
from mtrl_ray.learner.compute.reference_cache import ReferenceCache
from mtrl_ray.learner.rows.packing import BRANCH_TOKENS, Rows
from mtrl_ray.models.inputs import reads_trees
from mtrl_ray.models.policy import PolicyReader

REFERENCE, ANCHOR = "reference", "anchor"
COUNTERS = ("policy_steps", "referenced_at", "anchored_at", "published_version", "published_at")


class Core:
    """Models, passes and randomness of one learner process.

    `dtype` and `temperature` are the sampler's: with them the learner computes the log-probabilities of what was sampled.
    `branch_tokens` is 0 if the model cannot read trees: every response is then a sequence of its own.
    `fitted`: hashes of the conversations that Q has been fitted on.
    """

    def __init__(self, models: Models, passes: Passes, dtype: str, seed: int, temperature: float = 1.0) -> None:
        self.models, self.passes, self.dtype, self.seed, self.temperature = models, passes, dtype, seed, temperature
        self.branch_tokens = BRANCH_TOKENS if reads_trees(models.policy.decoder, passes.device) else 0
        self.counters: Counter[str] = Counter()
        self.policy_steps = 0
        self.referenced_at = self.anchored_at = -1
        self.published_version = self.published_at = 0
        self.fitted: set[int] = set()
        self._cache = ReferenceCache()

    def model(self, name: str) -> Model:
        """A model by name; the two references are created if missing. Raises ConfigurationError for an unknown name."""
        if name == REFERENCE:
            self.keep_reference()
        return self.models.frozen(ANCHOR) if name == ANCHOR else self.models.get(name)

    def evaluate(
        self, name: str, rows: Rows, options: ForwardOptions | None = None, selection: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """See `Passes.evaluate`."""
        model, options = self.model(name), options or ForwardOptions()
        if isinstance(model, PolicyReader) and self.models.is_frozen(name) and selection is None:
            return self._cache.get(model, rows, options, lambda: self.passes.evaluate(model, rows, options))
        return self.passes.evaluate(model, rows, options, selection)

    def update(
        self,
        name: str,
        rows: Rows,
        selection: np.ndarray,
        loss: LossFunction,
        step: Step,
        options: ForwardOptions | None = None,
    ) -> dict[str, float]:
        """See `Passes.update`."""
        if name == POLICY:
            self.keep_reference()
            self.policy_steps += 1
        return self.passes.update(self.model(name), self.models.optimiser(name), rows, selection, loss, step, options)

    def generator(self, stream: str) -> np.random.Generator:
        """The next generator of a stream."""
        self.counters[stream] += 1
        return np.random.default_rng([self.seed, zlib.crc32(stream.encode()), self.counters[stream]])

    def tensor(self, values: np.ndarray) -> Tensor:
        """A copy on the learner's device (Arrow's memory is read-only)."""
        return torch.from_numpy(np.array(values)).to(self.passes.device)

    def calibrate(self, name: str, targets: np.ndarray) -> None:
        """See `ValueModel.calibrate`."""
        if len(targets):
            self.models.value(name).calibrate(float(np.mean(targets)), float(np.std(targets)))

    def keep_reference(self) -> None:
        """Snapshot the policy as the reference `initial` if there is none yet."""
        if self.referenced_at < 0:
            self.models.frozen(REFERENCE)
            self.referenced_at = self.policy_steps

    def forget_reference(self) -> None:
        """Drop the reference `initial`; the policy at its next improvement becomes the new one."""
        self.models.forget(REFERENCE)
        self.referenced_at = -1

    def anchor(self) -> None:
        """Snapshot the policy as the reference `current`."""
        self.models.snapshot(ANCHOR)
        self.anchored_at = self.policy_steps

    def reference_name(self, reference: Literal["initial", "current"]) -> str:
        """Name of the model for a KL penalty's reference; until a snapshot is taken, `current` is the policy itself."""
        if reference == "current" and self.anchored_at < 0:
            self.anchor()
        return REFERENCE if reference == "initial" else ANCHOR

    def is_reference(self, reference: Literal["initial", "current"]) -> bool:
        """Whether the policy is unchanged since it became that reference."""
        if self.reference_name(reference) == ANCHOR:
            return self.policy_steps == self.anchored_at
        return self.referenced_at in (-1, self.policy_steps)

    def sampled_here(self, versions: np.ndarray) -> bool:
        """Whether all tokens of these versions were sampled by the policy's current weights, in float32 on a CPU.

        Then the sampler's log-probabilities are the learner's to within 1e-5. The folder's weights are version 0.
        """
        exact = self.dtype == "float32" and self.passes.device.type == "cpu"
        current = exact and self.published_at == self.policy_steps
        return current and bool((versions == self.published_version).all())

    def state(self) -> dict[str, Any]:
        """Counters as JSON values; they determine randomness and staleness."""
        return {"counters": dict(self.counters), "seed": self.seed} | {name: getattr(self, name) for name in COUNTERS}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`. Raises CheckpointError if it belongs to a run with another seed."""
        if state["seed"] != self.seed:
            raise CheckpointError(
                f"this learner's seed is {self.seed}, the checkpoint's {state['seed']}; they must agree"
            )
        self.counters = Counter(state["counters"])
        for name in COUNTERS:
            setattr(self, name, int(state[name]))
