import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from mtrl_ray.errors import EngineError
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.sft import SFT
from mtrl_ray.learner.methods.sft_processes import sft_in_processes
from mtrl_ray.learner.methods.warm_start import WarmStart
from mtrl_ray.models.policy import load_policy
from mtrl_ray.settings.tree import LearnerSettings
from tests.learner.test_sft import echoes
from tests.learner.test_warm_start import pairs

FEW = SFT(steps=4, minibatch_conversations=4)


def test_processes_of_its_own_give_what_one_gives(
    tmp_path: Path, policy_folder: Path, settings: LearnerSettings, conversations: pa.Table
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(policy_folder, folder)
    found = sft_in_processes(folder, FEW, conversations)
    alone = Learner(settings, policy_folder)
    expected = FEW.run(alone.core, conversations)[1]
    assert {name: found[name] for name in ("steps", "skipped", "trained_tokens")} == {
        name: expected[name] for name in ("steps", "skipped", "trained_tokens")
    }
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    trained = load_policy(folder).state_dict()
    for name, tensor in alone.core.models.network.state_dict().items():
        assert trained[name].numpy() == pytest.approx(tensor.numpy(), abs=1e-3), name


def test_a_process_that_fails_is_named_and_ends_the_others(tmp_path: Path, conversations: pa.Table) -> None:
    with pytest.raises(EngineError, match=r"process [01] of the warm start ended with status 1: .*no model"):
        sft_in_processes(tmp_path / "nowhere", FEW, conversations)


def test_a_warm_start_in_processes_learns_from_pairs(
    tmp_path: Path, policy_folder: Path, settings: LearnerSettings
) -> None:
    """Both answers of a pair are in one process, whatever its share of the rows."""
    folder = tmp_path / "model"
    shutil.copytree(policy_folder, folder)
    start = WarmStart(steps=6, until=1.0, minibatch_conversations=4)
    tables = (echoes(16), pairs(8), pairs(24))
    found = sft_in_processes(folder, start, *tables)
    expected = start.run(Learner(settings, policy_folder).core, *tables)[1]
    assert found["pair_steps"] == expected["pair_steps"] == 4
    assert found["probe"] == pytest.approx(expected["probe"], abs=1e-4)
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)
