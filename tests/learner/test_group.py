"""Real Ray actors, real gloo: two processes against one."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import ray

from mtrl_ray.errors import CheckpointError, DataError, EngineError
from mtrl_ray.learner.group import LearnerGroup
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.advantages import Advantages
from mtrl_ray.learner.methods.conversations import ConversationImprovement
from mtrl_ray.learner.methods.improvement import Improvement
from mtrl_ray.learner.methods.prm import ImplicitRewards, PRMFit
from mtrl_ray.learner.methods.q import PredictQ, QFit, ScoreResponses
from mtrl_ray.learner.methods.sft import SFT
from mtrl_ray.learner.methods.snapshot import Snapshot
from mtrl_ray.learner.methods.turn_rewards import TurnRewards
from mtrl_ray.learner.sections import KL
from mtrl_ray.settings.tree import LearnerSettings, ModelSettings
from mtrl_ray.weights.packed import PackedWeights, unpack
from tests.learner.examples import answer, grouped, talk
from tests.support.processes import wait_until

FIT = QFit(epochs=2, minibatch_conversations=8, target="td_lambda")
SPEC = Improvement(epochs=2, minibatch_conversations=4, kl=KL(reference="current"))
UNIFORM, WHOLE = TurnRewards(scheme="uniform"), ConversationImprovement(minibatch_conversations=4)


def settings_for(processes: int) -> LearnerSettings:
    return LearnerSettings(processes=processes, threads=1, cpus=0.5, tokens_per_microbatch=512)


@contextmanager
def group(processes: int, folder: Path, seconds: float = 60.0) -> Iterator[LearnerGroup]:
    started = LearnerGroup(settings_for(processes), ModelSettings(), folder, seed=3, collective_seconds=seconds)
    started.wait()
    yield started
    started.stop()


def flat(packed: PackedWeights) -> np.ndarray:
    return np.concatenate([tensor.numpy().ravel() for _, tensor in unpack(packed)])


def test_two_processes_give_the_result_of_one(ray_cluster: None, policy_folder: Path, tmp_path: Path) -> None:
    talks = talk(seed=1, count=24)
    responses = answer(talks, seed=2, samples=3)
    tables = [ray.put(talks), ray.put(responses)]
    with group(2, policy_folder) as two:
        two.run(Snapshot())
        promised = [
            two.run(SFT(steps=3, minibatch_conversations=8), tables[0])[1],
            two.run(FIT, tables[0])[1],
            two.run(ScoreResponses(), *tables)[0],
            two.run(SPEC, *tables)[1],
            two.run(PredictQ(0.95), tables[0])[0],
            two.weights(1),
        ]
        taught, fitted, scores, improved, predicted, weights = ray.get(promised, timeout=120)
        ray.get(two.save(tmp_path / "saved"), timeout=60)

    alone = Learner(settings_for(1), policy_folder, seed=3)
    Snapshot().run(alone.core)
    expected = SFT(steps=3, minibatch_conversations=8).run(alone.core, talks)[1]
    assert taught["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    expected = FIT.run(alone.core, talks)[1]
    assert fitted["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    np.testing.assert_allclose(scores, ScoreResponses().run(alone.core, talks, responses)[0], atol=1e-4)
    expected = SPEC.run(alone.core, talks, responses)[1]
    for name in ("policy_loss", "critic_loss", "kl_reference", "kl_step", "entropy", "clip_fraction", "gradient_norm"):
        assert improved[name] == pytest.approx(expected[name], abs=1e-4), name
    np.testing.assert_allclose(
        predicted["q"].to_numpy(), PredictQ().run(alone.core, talks)[0]["q"].to_numpy(), atol=1e-4
    )
    np.testing.assert_allclose(flat(weights), flat(alone.weights(1)), atol=1e-5)

    resumed = Learner(settings_for(1), policy_folder, seed=3)
    resumed.load(tmp_path / "saved")
    assert np.array_equal(flat(resumed.weights(1)), flat(weights))


def test_two_processes_learn_from_whole_conversations_as_one_does(
    ray_cluster: None, policy_folder: Path, tmp_path: Path
) -> None:
    talks = grouped(seed=1, contexts=6, samples=3)
    table, ppo = ray.put(talks), Advantages(estimator="ppo")
    with group(2, policy_folder) as two:
        fitted = two.run(PRMFit(), table)[1]
        implicit = two.run(ImplicitRewards(0.05), table)[0]
        rewards, numbers = two.run(TurnRewards(), table, implicit)
        found, _ = two.run(Advantages(), table, rewards)
        improved = two.run(WHOLE, table, found)[1]
        split, _ = two.run(TurnRewards(scheme="value"), table)
        critical, _ = two.run(ppo, table, split)
        random, _ = two.run(UNIFORM, table)
        promised = [fitted, implicit, rewards, numbers, found, improved, critical, random, two.weights(1)]
        fitted, implicit, rewards, numbers, found, improved, critical, random, weights = ray.get(promised, timeout=120)
        ray.get(two.save(tmp_path / "saved"), timeout=60)

    alone = Learner(settings_for(1), policy_folder, seed=3)
    assert PRMFit().run(alone.core, talks)[1]["loss"] == pytest.approx(fitted["loss"], abs=1e-5)
    np.testing.assert_allclose(ImplicitRewards(0.05).run(alone.core, talks)[0], implicit, atol=1e-4)
    expected, their_numbers = TurnRewards().run(alone.core, talks, implicit)
    np.testing.assert_allclose(expected, rewards, atol=1e-5)
    assert numbers == pytest.approx(their_numbers)
    np.testing.assert_allclose(Advantages().run(alone.core, talks, rewards)[0], found, atol=1e-5)
    expected = WHOLE.run(alone.core, talks, found)[1]
    for name in ("policy_loss", "kl_reference", "kl_step", "entropy", "gradient_norm"):
        assert improved[name] == pytest.approx(expected[name], abs=1e-4), name
    split, _ = TurnRewards(scheme="value").run(alone.core, talks)
    np.testing.assert_allclose(ppo.run(alone.core, talks, split)[0], critical, atol=1e-3)
    assert np.array_equal(UNIFORM.run(alone.core, talks)[0], random), "one seed, one split"
    np.testing.assert_allclose(flat(alone.weights(1)), flat(weights), atol=1e-5)

    resumed = Learner(settings_for(1), policy_folder, seed=3)
    resumed.load(tmp_path / "saved")
    np.testing.assert_allclose(
        ImplicitRewards(0.05).run(resumed.core, talks)[0], ImplicitRewards(0.05).run(alone.core, talks)[0], atol=1e-4
    )


def test_more_processes_than_rows(ray_cluster: None, policy_folder: Path) -> None:
    talks = talk(seed=1, count=1)
    spec = QFit(epochs=1, minibatch_conversations=1)
    with group(2, policy_folder) as two:
        fitted = ray.get(two.run(spec, talks)[1], timeout=60)
    alone = Learner(settings_for(1), policy_folder, seed=3)
    assert fitted["loss"] == pytest.approx(spec.run(alone.core, talks)[1]["loss"])


def test_one_process_needs_no_group(ray_cluster: None, policy_folder: Path, tmp_path: Path) -> None:
    talks = talk(seed=1, count=6)
    with group(1, policy_folder) as one:
        first = ray.get(one.run(FIT, ray.put(talks))[1], timeout=60)
        assert first["turns"] > 0
        with pytest.raises(DataError, match="nothing to fit Q on"):
            ray.get(one.run(FIT, talks.slice(0, 0))[1], timeout=60)
        with pytest.raises(CheckpointError, match="cannot be read"):
            ray.get(one.load(tmp_path), timeout=60)


def test_a_policy_that_is_not_there(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model can be loaded"):
        LearnerGroup(settings_for(1), ModelSettings(), tmp_path / "nothing").wait()


def test_a_group_that_nobody_asks_anything_says_that_it_was_lost(ray_cluster: None, policy_folder: Path) -> None:
    with group(1, policy_folder) as one:
        [process] = one.processes
        assert not one.failed()
        os.kill(process, signal.SIGKILL)
        wait_until(one.failed, 20)


def test_a_lost_partner_is_an_error_and_not_a_hang(ray_cluster: None, policy_folder: Path) -> None:
    talks = ray.put(talk(seed=1, count=12))
    with group(2, policy_folder, seconds=20.0) as two:
        ray.get(two.run(FIT, talks)[1], timeout=60)
        assert two.responsive(20.0)
        ray.kill(two._actors[1])  # returns before the process has ended
        wait_until(lambda: not two.responsive(20.0), 20)
        with pytest.raises(EngineError, match="lost its partners"):
            ray.get(two.run(FIT, talks)[1], timeout=60)
