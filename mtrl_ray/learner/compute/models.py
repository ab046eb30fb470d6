"""The models a learner holds, each made when it is first needed, and how they are kept on disk.

1. `policy` is trained. `reference` is a frozen copy of it as it was before its first improvement, `anchor` one as it
   was at the last `anchor()`. `critic`, `value`, `q`, `reward` and `preference` are value models that start from the
   policy's decoder: of tokens, of states before a turn, of responses, of conversations, of pairs of them; `q_target`
   follows `q`. `prm`, the implicit process reward model, is a policy that starts as a copy of the reference and is
   trained on its own.
2. A trained model has an optimiser, made with its first step.
3. On disk each is a Hugging Face folder named after it; optimiser states lie in `optimisers.pt`, which is read
   without unpickling anything but tensors and numbers. The policy's folder also has its tokenizer.
"""

import copy
import pickle
import shutil
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoTokenizer, PreTrainedModel

from mtrl_ray.errors import CheckpointError
from mtrl_ray.learner.compute.optimisation import Optimiser
from mtrl_ray.models.policy import PolicyReader, load_policy
from mtrl_ray.models.value import ValueModel

Frozen = Literal["reference", "anchor"]
FROZEN: tuple[Frozen, ...] = ("reference", "anchor")
Valued = Literal["critic", "value", "q", "q_target", "preference", "reward"]
VALUED: tuple[Valued, ...] = ("critic", "value", "q", "q_target", "preference", "reward")
Trained = Literal["policy", "prm", "critic", "value", "q", "preference", "reward"]
OPTIMISERS = "optimisers.pt"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".msgpack", ".h5", ".index.json")


class Models:
    """`policy` and what was made from it, on one device, in float32."""

    def __init__(self, source: str | Path, device: torch.device) -> None:
        self.source = (
            source  # of the tokenizer too; a checkpoint that is loaded may be pruned before the next is written
        )
        self.device = device
        self.policy = self._reader(source)
        self._prm: PolicyReader | None = None
        self._frozen: dict[str, PolicyReader] = {}
        self._values: dict[str, ValueModel] = {}
        self._optimisers: dict[str, Optimiser] = {}

    def _reader(self, source: str | Path) -> PolicyReader:
        return PolicyReader(load_policy(source).to(self.device))

    @property
    def network(self) -> PreTrainedModel:
        """The policy as transformers knows it."""
        return self.policy.model

    def frozen(self, name: Frozen) -> PolicyReader:
        """The reference or the anchor, copied from the policy now where there is none yet."""
        if name not in self._frozen:
            self._frozen[name] = copy.deepcopy(self.policy).requires_grad_(False)
        return self._frozen[name]

    def forget(self, name: Frozen) -> None:
        """The next `frozen(name)` copies the policy again."""
        self._frozen.pop(name, None)

    def prm(self) -> PolicyReader:
        """The implicit process reward model, copied from the reference where there is none yet."""
        if self._prm is None:
            self._prm = copy.deepcopy(self.frozen("reference")).requires_grad_(True)
        return self._prm

    def has_prm(self) -> bool:
        """Whether it has been made."""
        return self._prm is not None

    def forget_prm(self) -> None:
        """The next `prm()` copies the reference again."""
        self._prm = None
        self.reset_optimiser("prm")

    def value(self, name: Valued) -> ValueModel:
        """A value model, or Q's slow copy, made where there is none yet."""
        if name not in self._values:
            made = ValueModel.from_policy(self.network) if name != "q_target" else copy.deepcopy(self.value("q"))
            self._values[name] = made
        return self._values[name]

    def has(self, name: Valued) -> bool:
        """Whether that value model has been made."""
        return name in self._values

    def adopt(self, name: Valued, folder: str | Path) -> None:
        """Take a value model that `ValueModel.save` wrote, where there is none yet. Raises CheckpointError."""
        if name not in self._values:
            self._values[name] = ValueModel.load(folder, self.device)

    def trained(self, name: Trained) -> PolicyReader | ValueModel:
        """A model that has an optimiser, by name, made where there is none yet."""
        if name == "policy":
            return self.policy
        return self.prm() if name == "prm" else self.value(name)

    def optimiser(self, name: Trained, weight_decay: float = 0.0) -> Optimiser:
        """The model's optimiser; `weight_decay` counts when it is made."""
        if name not in self._optimisers:
            self._optimisers[name] = Optimiser(self.trained(name), weight_decay=weight_decay)
        return self._optimisers[name]

    def reset_optimiser(self, name: str) -> None:
        """The next `optimiser(name)` starts without moments."""
        self._optimisers.pop(name, None)

    def follow(self, rate: float) -> ValueModel:
        """Move Q's slow copy by `rate` towards Q and give it; at rate 1, Q itself."""
        if rate == 1.0:
            return self.value("q")
        slow, fast = self.value("q_target"), self.value("q")
        with torch.no_grad():
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.lerp_(new, rate)
        slow.offset.copy_(fast.offset)
        slow.scale.copy_(fast.scale)
        return slow

    def save(self, folder: Path) -> None:
        """Write everything that has been made."""
        self.network.save_pretrained(folder / "policy")
        _copy_tokenizer(self.source, folder / "policy")
        for name, reader in self._frozen.items():
            reader.model.save_pretrained(folder / name)
        if self._prm is not None:
            self._prm.model.save_pretrained(folder / "prm")
        for name, model in self._values.items():
            model.save(folder / name)
        torch.save({name: entry.state_dict() for name, entry in self._optimisers.items()}, folder / OPTIMISERS)

    def load(self, folder: Path) -> None:
        """Replace everything by what `save` wrote. Raises CheckpointError."""
        self.policy = self._reader(folder / "policy")
        kept = [name for name in FROZEN if (folder / name).is_dir()]
        self._frozen = {name: self._reader(folder / name).requires_grad_(False) for name in kept}
        self._prm = self._reader(folder / "prm") if (folder / "prm").is_dir() else None
        valued = [name for name in VALUED if (folder / name).is_dir()]
        self._values = {name: ValueModel.load(folder / name, self.device) for name in valued}
        self._optimisers = {}
        try:
            states = torch.load(folder / OPTIMISERS, map_location=self.device, weights_only=True)
            for name, state in states.items():
                self.optimiser(name).load_state_dict(state)
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"the optimisers in {str(folder)!r} cannot be read: {reason}") from error


def _copy_tokenizer(source: str | Path, target: Path) -> None:
    """Put the tokenizer's files, and whatever else is no weights, beside a saved model."""
    if not Path(source).is_dir():
        AutoTokenizer.from_pretrained(source).save_pretrained(target)
        return
    for entry in Path(source).iterdir():
        if entry.is_file() and not entry.name.endswith(WEIGHT_SUFFIXES) and not (target / entry.name).exists():
            shutil.copy2(entry, target / entry.name)
