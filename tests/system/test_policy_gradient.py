"""`policy_gradient` on a real Ray: every estimator, and a run that is resumed."""

from typing import Any

import numpy as np
import pytest
import ray

from mtrl_ray.algorithms.registry import make_algorithm
from mtrl_ray.monitoring.recorder import read_metrics
from mtrl_ray.monitoring.view import Silent
from mtrl_ray.run import trainer
from mtrl_ray.run.folder import resumed_settings, write_settings
from tests.support.algorithms import settings_with

TREE: dict[str, Any] = {
    "name": "policy_gradient",
    "contexts": 4,
    "samples": 3,
    "overlong_penalty": 0.1,
    "improvement": {"minibatch_conversations": 6},
}


@pytest.fixture(scope="module")
def stepping(ray_cluster: None, quick: list[str], tmp_path_factory: pytest.TempPathFactory):
    """A trainer whose iterations the tests make themselves."""
    made = trainer.Trainer(settings_with(TREE, quick, tmp_path_factory.mktemp("policy_gradient"), "stepping"))
    yield made
    made.stop()


@pytest.mark.parametrize("estimator", ["rloo", "grpo", "reinforce_plus_plus", "ppo", "turn_ppo"])
def test_every_estimator_learns(stepping, estimator):
    stepping.algorithm = make_algorithm(TREE | {"advantages": {"estimator": estimator}})
    before = ray.get(stepping.system.learner.weights(900)).buffer
    metrics = stepping.step()
    assert metrics["improve/conversations"] == 12 and metrics["improve/policy_steps"] == 2
    assert (
        metrics["rewards/overlong"] == pytest.approx(metrics["collect/truncated"]) and metrics["rewards/overlong"] > 0
    )
    turns = metrics["collect/agent_turns"] / metrics["collect/conversations"]
    price = 0.1 * metrics["rewards/overlong"] * turns
    assert metrics["rewards/outcome"] == pytest.approx(metrics["collect/score_mean"] - price, abs=1e-5)
    assert metrics["advantages/deviation"] > 0 and np.isfinite(metrics["improve/policy_loss"])
    assert ("advantages/critic_loss" in metrics) == (estimator in ("ppo", "turn_ppo"))
    assert (ray.get(stepping.system.learner.weights(901)).buffer != before).any()


def test_a_run_on_sales_goes_on_with_its_critic(ray_cluster, quick, tmp_path):
    tree = TREE | {"advantages": {"estimator": "turn_ppo", "gae_lambda": 0.9}}
    settings = settings_with(tree, quick, tmp_path, "whole", "environment.name=sales")
    summary = trainer.run(settings, Silent())
    assert summary["end"]["n"] == 8
    write_settings(resumed_settings(settings.run_folder, ["run.iterations=3"]))
    trainer.run(resumed_settings(settings.run_folder, ["run.iterations=3"]), Silent(), resume=True)
    rows = read_metrics(settings.run_folder)
    assert [row["collect/conversations"] for row in rows] == [12, 12, 12]
    assert rows[-1]["improve/kl_reference"] > 0
