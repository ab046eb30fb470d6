import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from mtrl_ray.errors import EngineError
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.sft import SFT
from mtrl_ray.learner.methods.sft_processes import sft_in_processes
from mtrl_ray.models.policy import load_policy
from mtrl_ray.settings.tree import LearnerSettings

FEW = SFT(steps=4, minibatch_conversations=4)


def test_processes_of_its_own_give_what_one_gives(
    tmp_path: Path, policy_folder: Path, settings: LearnerSettings, conversations: pa.Table
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(policy_folder, folder)
    found = sft_in_processes(folder, conversations, FEW)
    alone = Learner(settings, policy_folder)
    expected = alone.run(FEW, conversations)[1]
    assert {name: found[name] for name in ("steps", "skipped", "trained_tokens")} == {
        name: expected[name] for name in ("steps", "skipped", "trained_tokens")
    }
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    trained = load_policy(folder).state_dict()
    for name, tensor in alone.core.models.network.state_dict().items():
        assert trained[name].numpy() == pytest.approx(tensor.numpy(), abs=1e-3), name


def test_a_process_that_fails_is_named_and_ends_the_others(tmp_path: Path, conversations: pa.Table) -> None:
    with pytest.raises(EngineError, match=r"process [01] of the warm start ended with status 1: .*no model"):
        sft_in_processes(tmp_path / "nowhere", conversations, FEW)
