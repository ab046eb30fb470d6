"""The models a learner holds, by name, and how they are kept on disk.

`policy` is trained. Any other name may be used, by an operation of another package too, for one of these: a *value model* that
starts from the policy's decoder (`value`), a *frozen* copy of the policy (`frozen`, `snapshot`), a *copy* of another model
that is trained on its own (`copy`) or follows its source slowly (`follow`). A trained model has an optimiser, made with its
first step.

Names in use:

- `reference`, the policy before its first improvement, and `anchor`, the policy at the last `Snapshot`;
- value models: `critic` of tokens, `value` of states before a turn, `q` of responses, `reward` of conversations, `preference`
  of pairs of them;
- `q_target`, which follows `q`, and `prm`, a copy of the reference.

On disk each is a Hugging Face folder of its name, and `models.json` gives the kind of each. Optimiser states are in
`optimisers.pt`, which is read without unpickling anything but tensors and numbers. The policy's folder also has its tokenizer.
"""

import copy
import json
import pickle
import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel

from mtrl_ray.errors import CheckpointError, ConfigurationError
from mtrl_ray.learner.compute.optimisation import Optimiser
from mtrl_ray.models.policy import PolicyReader, load_policy
from mtrl_ray.models.value import ValueModel

Model = PolicyReader | ValueModel
POLICY = "policy"
OPTIMISERS, KINDS = "optimisers.pt", "models.json"
KINDS_BEFORE_0_2 = {
    "frozen": ["reference", "anchor"],
    "copies": ["prm"],
    "values": ["critic", "value", "q", "q_target", "preference", "reward"],
}
"""What the folders of a checkpoint without `models.json` are, if they are there."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".msgpack", ".h5", ".index.json")


class Models:
    """The policy and the models made from it, on one device, in float32."""

    def __init__(self, source: str | Path, device: torch.device) -> None:
        self.source = (
            source  # of the tokenizer too: a checkpoint that was loaded may be pruned before the next is written
        )
        self.device = device
        self.policy = self._reader(source)
        self._made: dict[str, Model] = {}
        self._frozen: set[str] = set()
        self._optimisers: dict[str, Optimiser] = {}

    def _reader(self, source: str | Path) -> PolicyReader:
        return PolicyReader(load_policy(source).to(self.device))

    @property
    def network(self) -> PreTrainedModel:
        """The policy as a transformers model."""
        return self.policy.model

    def __contains__(self, name: str) -> bool:
        return name == POLICY or name in self._made

    def get(self, name: str) -> Model:
        """The policy, or a model that has been made. Raises ConfigurationError if it has not."""
        if name == POLICY:
            return self.policy
        if name not in self._made:
            known = ", ".join([POLICY, *sorted(self._made)])
            raise ConfigurationError(f"the learner has no model {name!r} yet; it has {known}")
        return self._made[name]

    def value(self, name: str) -> ValueModel:
        """The value model of this name, made from the current policy if there is none yet."""
        if name not in self._made:
            self._add(name, ValueModel.from_policy(self.network))
        model = self._made[name]
        if not isinstance(model, ValueModel):
            raise ConfigurationError(f"{name!r} is a language model, not a value model; use another name")
        return model

    def frozen(self, name: str) -> PolicyReader:
        """The frozen copy of this name, of the current policy, created if there is none yet."""
        if name not in self._made:
            self._add(name, copy.deepcopy(self.policy).requires_grad_(False))
            self._frozen.add(name)
        model = self._made[name]
        if name not in self._frozen or not isinstance(model, PolicyReader):
            raise ConfigurationError(f"{name!r} is not a frozen copy of the policy; use another name")
        return model

    def snapshot(self, name: str) -> PolicyReader:
        """Replace this frozen copy with one of the current policy."""
        self.forget(name)
        return self.frozen(name)

    def is_frozen(self, name: str) -> bool:
        """Whether the model never changes while it is kept."""
        return name in self._frozen

    def copy(self, name: str, source: str) -> Model:
        """The model of this name, copied from another one, with weights that can change, if there is none yet."""
        if name not in self._made:
            self._add(name, copy.deepcopy(self.get(source)).requires_grad_(True))
        return self._made[name]

    def follow(self, name: str, source: str, rate: float) -> Model:
        """Move a copy of `source` by `rate` towards it: a slow target, or a moving average of the policy. Returns the copy."""
        slow, fast = self.copy(name, source), self.get(source)
        with torch.no_grad():
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.lerp_(new, rate)
            for old, new in zip(slow.buffers(), fast.buffers(), strict=True):
                old.copy_(new)
        return slow

    def forget(self, name: str) -> None:
        """Drop a model and its optimiser; the next use creates it again."""
        self._made.pop(name, None)
        self._frozen.discard(name)
        self.reset_optimiser(name)

    def adopt(self, name: str, folder: str | Path) -> None:
        """Take a value model that `ValueModel.save` wrote, if there is none of this name yet. Raises CheckpointError."""
        if name not in self._made:
            self._add(name, ValueModel.load(folder, self.device))

    def _add(self, name: str, model: Model) -> None:
        if not name.isidentifier() or name == POLICY:
            raise ConfigurationError(f"{name!r} cannot name a model; it has to be an identifier other than {POLICY!r}")
        self._made[name] = model

    def optimiser(self, name: str, weight_decay: float = 0.0) -> Optimiser:
        """The model's optimiser; `weight_decay` is used only when it is created."""
        if name not in self._optimisers:
            if name in self._frozen:
                raise ConfigurationError(f"{name!r} is frozen and cannot be trained; train a copy of it")
            self._optimisers[name] = Optimiser(self.get(name), weight_decay=weight_decay)
        return self._optimisers[name]

    def reset_optimiser(self, name: str) -> None:
        """The next `optimiser(name)` starts without moments."""
        self._optimisers.pop(name, None)

    def save(self, folder: Path) -> None:
        """Write all models and optimisers."""
        self.network.save_pretrained(folder / POLICY)
        _copy_tokenizer(self.source, folder / POLICY)
        for name, model in self._made.items():
            if isinstance(model, ValueModel):
                model.save(folder / name)
            else:
                model.model.save_pretrained(folder / name)
        (folder / KINDS).write_text(json.dumps(self._kinds(), indent=1))
        torch.save({name: entry.state_dict() for name, entry in self._optimisers.items()}, folder / OPTIMISERS)

    def load(self, folder: Path) -> None:
        """Replace all models and optimisers with those that `save` wrote. Raises CheckpointError."""
        self.policy = self._reader(folder / POLICY)
        kinds = _saved_kinds(folder)
        self._frozen = set(kinds["frozen"])
        self._made = {name: self._reader(folder / name).requires_grad_(False) for name in kinds["frozen"]}
        self._made |= {name: self._reader(folder / name) for name in kinds["copies"]}
        self._made |= {name: ValueModel.load(folder / name, self.device) for name in kinds["values"]}
        self._optimisers = {}
        try:
            states = torch.load(folder / OPTIMISERS, map_location=self.device, weights_only=True)
            for name, state in states.items():
                self.optimiser(name).load_state_dict(state)
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"the optimisers in {str(folder)!r} cannot be read: {reason}") from error

    def _kinds(self) -> dict[str, list[str]]:
        values = [name for name, model in self._made.items() if isinstance(model, ValueModel)]
        copies = [name for name in self._made if name not in values and name not in self._frozen]
        return {"frozen": sorted(self._frozen), "copies": sorted(copies), "values": sorted(values)}


def _saved_kinds(folder: Path) -> dict[str, list[str]]:
    """Names of the models in a saved folder except the policy, by kind."""
    if (folder / KINDS).is_file():
        kinds: dict[str, list[str]] = json.loads((folder / KINDS).read_text())
        return kinds
    return {kind: [name for name in names if (folder / name).is_dir()] for kind, names in KINDS_BEFORE_0_2.items()}


def _copy_tokenizer(source: str | Path, target: Path) -> None:
    """Copy the tokenizer's and all other non-weight files to a saved model."""
    if not Path(source).is_dir():
        AutoTokenizer.from_pretrained(source).save_pretrained(target)
        return
    for entry in Path(source).iterdir():
        if entry.is_file() and not entry.name.endswith(WEIGHT_SUFFIXES) and not (target / entry.name).exists():
            shutil.copy2(entry, target / entry.name)
