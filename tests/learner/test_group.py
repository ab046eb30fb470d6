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
from mtrl_ray.learner.specification import (
    KL,
    Advantages,
    ConversationImprovement,
    Improvement,
    PRMFit,
    QFit,
    Supervision,
    TurnRewards,
)
from mtrl_ray.settings.tree import LearnerSettings, ModelSettings
from mtrl_ray.weights.packed import PackedWeights, unpack
from tests.learner.examples import answer, grouped, talk
from tests.support.processes import wait_until

FIT = QFit(epochs=2, minibatch_conversations=8, target="td_lambda")
SPEC = Improvement(epochs=2, minibatches=2, kl=KL(reference="current"))
UNIFORM, WHOLE = TurnRewards(scheme="uniform"), ConversationImprovement(minibatches=3)


def settings_for(processes: int) -> LearnerSettings:
    return LearnerSettings(processes=processes, threads=1, device="cpu", cpus=0.5, tokens_per_microbatch=512)


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
        two.anchor()
        promised = [
            two.supervise(tables[0], Supervision(steps=3, minibatch_conversations=8)),
            two.fit_q(tables[0], FIT),
            two.score(*tables),
            two.improve(*tables, SPEC),
            two.predict_q(tables[0], 0.95),
            two.weights(1),
        ]
        taught, fitted, scores, improved, predicted, weights = ray.get(promised, timeout=120)
        ray.get(two.save(tmp_path / "saved"), timeout=60)

    alone = Learner(settings_for(1), policy_folder, seed=3)
    alone.anchor()
    expected = alone.supervise(talks, Supervision(steps=3, minibatch_conversations=8))
    assert taught["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    expected = alone.fit_q(talks, FIT)
    assert fitted["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    np.testing.assert_allclose(scores, alone.score(talks, responses), atol=1e-4)
    expected = alone.improve(talks, responses, SPEC)
    for name in ("policy_loss", "critic_loss", "kl_reference", "kl_step", "entropy", "clip_fraction", "gradient_norm"):
        assert improved[name] == pytest.approx(expected[name], abs=1e-4), name
    np.testing.assert_allclose(predicted["q"].to_numpy(), alone.predict_q(talks)["q"].to_numpy(), atol=1e-4)
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
        fitted = two.fit_prm(table, PRMFit())
        implicit = two.implicit_rewards(table, 0.05)
        rewards, numbers = two.turn_rewards(table, TurnRewards(), implicit)
        found, _ = two.advantages(table, rewards, Advantages())
        improved = two.improve_conversations(table, found, WHOLE)
        split, _ = two.turn_rewards(table, TurnRewards(scheme="value"))
        critical, _ = two.advantages(table, split, ppo)
        random, _ = two.turn_rewards(table, UNIFORM)
        promised = [fitted, implicit, rewards, numbers, found, improved, critical, random, two.weights(1)]
        fitted, implicit, rewards, numbers, found, improved, critical, random, weights = ray.get(promised, timeout=120)
        ray.get(two.save(tmp_path / "saved"), timeout=60)

    alone = Learner(settings_for(1), policy_folder, seed=3)
    assert alone.fit_prm(talks, PRMFit())["loss"] == pytest.approx(fitted["loss"], abs=1e-5)
    np.testing.assert_allclose(alone.implicit_rewards(talks, 0.05), implicit, atol=1e-4)
    expected, their_numbers = alone.turn_rewards(talks, TurnRewards(), implicit)
    np.testing.assert_allclose(expected, rewards, atol=1e-5)
    assert numbers == pytest.approx(their_numbers)
    np.testing.assert_allclose(alone.advantages(talks, rewards)[0], found, atol=1e-5)
    expected = alone.improve_conversations(talks, found, WHOLE)
    for name in ("policy_loss", "kl_reference", "kl_step", "entropy", "gradient_norm"):
        assert improved[name] == pytest.approx(expected[name], abs=1e-4), name
    split, _ = alone.turn_rewards(talks, TurnRewards(scheme="value"))
    np.testing.assert_allclose(alone.advantages(talks, split, ppo)[0], critical, atol=1e-3)
    assert np.array_equal(alone.turn_rewards(talks, UNIFORM)[0], random), "one seed, one split"
    np.testing.assert_allclose(flat(alone.weights(1)), flat(weights), atol=1e-5)

    resumed = Learner(settings_for(1), policy_folder, seed=3)
    resumed.load(tmp_path / "saved")
    np.testing.assert_allclose(resumed.implicit_rewards(talks, 0.05), alone.implicit_rewards(talks, 0.05), atol=1e-4)


def test_more_processes_than_rows(ray_cluster: None, policy_folder: Path) -> None:
    talks = talk(seed=1, count=1)
    spec = QFit(epochs=1, minibatch_conversations=1)
    with group(2, policy_folder) as two:
        fitted = ray.get(two.fit_q(talks, spec), timeout=60)
    assert fitted["loss"] == pytest.approx(Learner(settings_for(1), policy_folder, seed=3).fit_q(talks, spec)["loss"])


def test_one_process_needs_no_group(ray_cluster: None, policy_folder: Path, tmp_path: Path) -> None:
    talks = talk(seed=1, count=6)
    with group(1, policy_folder) as one:
        first = ray.get(one.fit_q(ray.put(talks), FIT), timeout=60)
        assert first["turns"] > 0
        with pytest.raises(DataError, match="nothing to fit Q on"):
            ray.get(one.fit_q(talks.slice(0, 0), FIT), timeout=60)
        with pytest.raises(CheckpointError, match="cannot be read"):
            ray.get(one.load(tmp_path), timeout=60)


def test_a_policy_that_is_not_there(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model can be opened"):
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
        ray.get(two.fit_q(talks, FIT), timeout=60)
        assert two.sound(20.0)
        ray.kill(two._actors[1])  # returns before the process has ended
        wait_until(lambda: not two.sound(20.0), 20)
        with pytest.raises(EngineError, match="lost its partners"):
            ray.get(two.fit_q(talks, FIT), timeout=60)
