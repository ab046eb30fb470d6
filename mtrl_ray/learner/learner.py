"""The models of one learner process: how they are opened, published and kept in checkpoints.

Operations run on `Learner.core`. The same seed and the same calls give the same numbers. With several processes every process
makes the same calls; each computes its share, and all end with the same models (`compute.core`, `compute.collective`). Models
run in evaluation mode throughout: dropout would put noise into every ratio of probabilities.
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
from transformers.core_model_loading import revert_weight_conversion

from mtrl_ray.errors import CheckpointError, ConfigurationError
from mtrl_ray.learner.compute import randomness
from mtrl_ray.learner.compute.collective import Collective
from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.compute.models import Models
from mtrl_ray.settings.tree import LearnerSettings
from mtrl_ray.weights.packed import PackedWeights, pack

STATE, FITTED = "learner.json", "fitted.npy"


class Learner:
    """`policy`: a Hugging Face folder or a name of the hub; `dtype` and `temperature`: the sampler's.

    Raises CheckpointError if the policy cannot be opened, ConfigurationError if the device does not exist.
    """

    def __init__(
        self,
        settings: LearnerSettings,
        policy: str | Path,
        dtype: str = "float32",
        seed: int = 0,
        collective: Collective | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.collective = collective or Collective()
        torch.set_num_threads(settings.threads or max(1, len(os.sched_getaffinity(0)) // settings.processes))
        torch.manual_seed(seed)
        device = pick_device(settings)
        models = Models(policy, device)
        self.core = Core(models, dtype, settings.tokens_per_microbatch, self.collective, seed, temperature)

    def adopt(self, model: str, folder: str | Path) -> None:
        """Take a value model that was saved before, if there is none of this name yet. Raises CheckpointError."""
        self.core.models.adopt(model, folder)

    def weights(self, version: int) -> PackedWeights:
        """The policy's weights under checkpoint names, in the samplers' dtype, stamped `version`."""
        self.core.references.publish(version)
        network = self.core.models.network
        tied = getattr(network, "all_tied_weights_keys", None) or {}
        state = {name: tensor for name, tensor in network.state_dict().items() if name not in tied}
        return pack(revert_weight_conversion(network, state), version, getattr(torch, self.core.dtype))

    def packed(self, version: int) -> tuple[PackedWeights, int]:
        """`weights`, and their size in bytes."""
        weights = self.weights(version)
        return weights, weights.nbytes

    def save(self, folder: str | Path) -> None:
        """Write models, optimisers and random states into `folder`; only the first of several processes writes."""
        if self.collective.rank:
            return
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.core.models.save(folder)
        np.save(folder / FITTED, np.array(sorted(self.core.fitted), dtype=np.int64))
        randomness.keep(folder)
        (folder / STATE).write_text(json.dumps(self.core.state(), indent=1, sort_keys=True))

    def load(self, folder: str | Path) -> None:
        """Continue from what `save` wrote. Raises CheckpointError if it cannot be read."""
        folder = Path(folder)
        try:
            state = json.loads((folder / STATE).read_text())
            fitted = np.load(folder / FITTED, allow_pickle=False)
            self.core.models.load(folder)
            self.core.restore(state)
            randomness.restore(folder)
        except CheckpointError:
            raise
        except Exception as error:  # json, numpy and torch share no base class
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"the learner's state in {str(folder)!r} cannot be read: {reason}") from error
        self.core.fitted = set(fitted.tolist())


def pick_device(settings: LearnerSettings) -> torch.device:
    """The GPU if the process has a share of one, otherwise the CPU. Raises ConfigurationError if there is no GPU."""
    if settings.gpus and not torch.cuda.is_available():
        raise ConfigurationError(f"learner.gpus is {settings.gpus:g}, but torch sees no GPU here; set it to 0")
    return torch.device("cuda" if settings.gpus else "cpu")
