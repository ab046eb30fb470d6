"""Random interleaved conversations, and verl's core_algos as an independent implementation without its dependencies.

1. `pip install --no-deps --target .venv/reference verl==0.9.1` brings the files; a folder of its own, because the wheel
   also carries top-level packages named `tests` and `scripts`. An ordinary installation is found too.
2. Only `core_algos`, the importance weights and what they compute with are imported. What those files import and never
   call here (containers, device probes, configuration classes) is stood in for by empty classes.
3. `sys.modules` is put back afterwards: nobody else sees the stand-ins.
"""

import importlib
import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

STAND_INS = {
    "omegaconf": ["DictConfig"],
    "tensordict": ["TensorDict"],
    "verl.protocol": ["DataProto"],
    "verl.trainer.config": ["AlgoConfig"],
    "verl.trainer.config.algorithm": ["RolloutCorrectionConfig"],
    "verl.utils.device": ["get_device_name", "get_torch_device"],
    "verl.workers": [],
    "verl.workers.config": ["ActorConfig"],
    "verl.workers.config.actor": ["PolicyLossConfig"],
}


def _verl_module(name: str) -> ModuleType:
    """A module of verl by its dotted name; skips the test where verl is not installed."""
    spec = importlib.machinery.PathFinder.find_spec("verl", [str(Path(sys.prefix) / "reference"), *sys.path])
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("verl is not installed: pip install --no-deps --target .venv/reference verl==0.9.1")
    root = Path(next(iter(spec.submodule_search_locations)))
    modules = {name: ModuleType(name) for name in STAND_INS}
    for module, names in STAND_INS.items():
        vars(modules[module]).update({attribute: type(attribute, (), {}) for attribute in names})
    for package in ("verl", "verl.utils", "verl.trainer", "verl.trainer.ppo"):
        modules[package] = ModuleType(package)
        modules[package].__path__ = [str(root.joinpath(*package.split(".")[1:]))]
    with mock.patch.dict(sys.modules, modules):
        groupwise = importlib.import_module("verl.utils.groupwise")
        vars(modules["verl.utils"]).update({name: getattr(groupwise, name) for name in groupwise.__all__})
        return importlib.import_module(name)


@pytest.fixture(scope="session")
def core_algos() -> ModuleType:
    """verl.trainer.ppo.core_algos."""
    return _verl_module("verl.trainer.ppo.core_algos")


@pytest.fixture(scope="session")
def rollout_correction() -> ModuleType:
    """verl.trainer.ppo.rollout_corr_helper."""
    return _verl_module("verl.trainer.ppo.rollout_corr_helper")


@st.composite
def _masks(draw: st.DrawFn) -> Tensor:
    """bool [1-4 rows, up to 200 columns]: each row alternates agent and user spans, or is empty, full or one token."""
    columns = draw(st.sampled_from([1, 2, 5, 17, 64, 65, 129, 200]))
    rows = []
    for kind in draw(st.lists(st.sampled_from(["empty", "full", "single", "agent", "user"]), min_size=1, max_size=4)):
        if kind in ("agent", "user"):
            spans = draw(st.lists(st.integers(1, 30), min_size=1, max_size=20))
            owners = torch.arange(len(spans)) % 2 == (0 if kind == "agent" else 1)
            row = owners.repeat_interleave(torch.tensor(spans))[:columns]
            row = torch.nn.functional.pad(row, (0, columns - len(row)))
        else:
            row = torch.full((columns,), kind == "full")
            row[draw(st.integers(0, columns - 1))] |= kind == "single"
        rows.append(row)
    return torch.stack(rows)


@pytest.fixture(scope="session")
def masks() -> st.SearchStrategy[Tensor]:
    """Strategy of interleaved masks, bool [conversations, tokens]; wide enough to cross several blocks of the scan."""
    return _masks()
