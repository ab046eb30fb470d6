"""What a checkpoint keeps: a learner that was saved and loaded goes on as if nothing had happened."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from mtrl_ray.errors import CheckpointError, ConfigurationError
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.advantages import Advantages
from mtrl_ray.learner.methods.conversations import ConversationImprovement
from mtrl_ray.learner.methods.improvement import Improvement
from mtrl_ray.learner.methods.prm import ImplicitRewards, PRMFit
from mtrl_ray.learner.methods.q import QFit
from mtrl_ray.learner.methods.snapshot import Snapshot
from mtrl_ray.learner.methods.turn_rewards import TurnRewards
from mtrl_ray.learner.sections import KL
from mtrl_ray.settings.tree import LearnerSettings
from mtrl_ray.weights.packed import unpack
from tests.learner.examples import answer, grouped, talk

SPEC = Improvement(kl=KL(reference="current"))
FIT = QFit(target="td_lambda", target_rate=0.5, minibatch_conversations=4)


def iterate(learner: Learner, number: int) -> dict[str, float]:
    """One iteration; its numbers, times left out."""
    talks = talk(seed=number, count=12, prefix=f"{number}-")
    Snapshot().run(learner.core)
    fitted = {f"q/{name}": value for name, value in FIT.run(learner.core, talks)[1].items()}
    improved = SPEC.run(learner.core, talks, answer(talks, number, samples=3, version=number))[1]
    return {name: value for name, value in (fitted | improved).items() if "second" not in name}


def test_a_loaded_learner_continues_bit_for_bit(
    learner: Learner, policy_folder: Path, settings: LearnerSettings, tmp_path: Path
) -> None:
    iterate(learner, 1)
    learner.weights(2)
    learner.save(tmp_path)
    expected = [iterate(learner, number) for number in (2, 3)]

    other = Learner(settings, policy_folder, seed=3)
    other.load(tmp_path)
    assert [iterate(other, number) for number in (2, 3)] == expected
    for own, loaded in zip(unpack(learner.weights(4)), unpack(other.weights(4)), strict=True):
        assert own[0] == loaded[0]
        assert torch.equal(own[1], loaded[1])


def test_a_loaded_learner_needs_the_checkpoint_no_more(
    learner: Learner, policy_folder: Path, settings: LearnerSettings, tmp_path: Path
) -> None:
    learner.save(tmp_path / "old")
    other = Learner(settings, policy_folder, seed=3)
    other.load(tmp_path / "old")
    shutil.rmtree(tmp_path / "old")
    other.save(tmp_path / "new")
    for entry in policy_folder.iterdir():
        assert (tmp_path / "new" / "policy" / entry.name).is_file(), entry.name


def iterate_whole(learner: Learner, number: int) -> dict[str, float]:
    """One iteration on whole conversations with every model that such an algorithm has; its numbers."""
    talks = grouped(seed=number, contexts=3, samples=3, prefix=f"{number}-")
    fitted = PRMFit(minibatch_conversations=4).run(learner.core, talks)[1]
    implicit = ImplicitRewards(0.05).run(learner.core, talks)[0]
    rewards = [TurnRewards(scheme=name).run(learner.core, talks, implicit) for name in ("itpo", "value", "uniform")]
    found, numbers = Advantages(estimator="ppo").run(learner.core, talks, sum(reward for reward, _ in rewards))
    improved = ConversationImprovement().run(learner.core, talks, found)[1]
    everything = {f"prm/{name}": value for name, value in fitted.items()} | rewards[1][1] | numbers | improved
    return {name: value for name, value in everything.items() if "second" not in name}


def test_a_loaded_learner_continues_on_whole_conversations_bit_for_bit(
    learner: Learner, policy_folder: Path, settings: LearnerSettings, tmp_path: Path
) -> None:
    iterate_whole(learner, 1)
    learner.save(tmp_path)
    expected = iterate_whole(learner, 2)
    AutoModelForCausalLM.from_pretrained(tmp_path / "prm")
    AutoModel.from_pretrained(tmp_path / "value")
    other = Learner(settings, policy_folder, seed=3)
    other.load(tmp_path)
    assert iterate_whole(other, 2) == expected


def test_folders_open_without_this_project(learner: Learner, tmp_path: Path) -> None:
    iterate(learner, 1)
    learner.save(tmp_path)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, learner.core.models.network.state_dict()[name])
    for name in ("critic", "q", "q_target"):
        AutoModel.from_pretrained(tmp_path / name)
    assert (tmp_path / "policy" / "tokenizer_config.json").is_file()


@pytest.mark.parametrize(
    "damage",
    ["learner.json", "fitted.npy", "random.pt", "optimisers.pt", "q/value_head.safetensors", "policy/config.json"],
)
def test_torn_checkpoints_are_refused_in_a_sentence(learner: Learner, tmp_path: Path, damage: str) -> None:
    iterate(learner, 1)
    learner.save(tmp_path)
    whole = (tmp_path / damage).read_bytes()
    (tmp_path / damage).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"cannot be read|no model can be loaded"):
        learner.load(tmp_path)
    (tmp_path / damage).unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read|no model can be loaded"):
        learner.load(tmp_path)


def test_a_checkpoint_of_another_seed_is_refused(
    learner: Learner, policy_folder: Path, settings: LearnerSettings, tmp_path: Path
) -> None:
    learner.save(tmp_path)
    with pytest.raises(CheckpointError, match="seed is 4, the checkpoint's 3"):
        Learner(settings, policy_folder, seed=4).load(tmp_path)


def test_weights_carry_checkpoint_names_once(learner: Learner, policy_folder: Path, conversations: pa.Table) -> None:
    packed = learner.weights(7)
    assert packed.version == 7
    assert "lm_head.weight" not in packed.names, "tied to the embeddings"
    loaded = AutoModelForCausalLM.from_pretrained(policy_folder).state_dict()
    assert set(packed.names) == set(loaded) - {"lm_head.weight"}
    for name, tensor in unpack(packed):
        assert torch.equal(tensor, loaded[name])


def test_half_precision_samplers_get_half_precision_weights(settings: LearnerSettings, policy_folder: Path) -> None:
    learner = Learner(settings, policy_folder, dtype="bfloat16")
    tensors = dict(unpack(learner.weights(0)))
    state = learner.core.models.network.state_dict()
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16
        assert state[name].dtype == torch.float32
        assert torch.equal(tensor, state[name].bfloat16())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named(policy_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="torch sees no GPU"):
        Learner(LearnerSettings(gpus=1), policy_folder)


def test_random_numbers_depend_on_seed_stream_and_count_only(learner: Learner) -> None:
    draws = [learner.core.generator(stream).random() for stream in ("a", "a", "b")]
    assert len(set(draws)) == 3
    again = np.random.default_rng([3, 0xE8B7BE43, 1]).random()
    assert draws[0] == again
