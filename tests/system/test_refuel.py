"""REFUEL on a real Ray: pairs from branches, steps, and a run that is killed between conversations and branches."""

import shutil
from typing import Any

import pytest
import ray

from mtrl_ray.dialogue.conversation import from_table
from mtrl_ray.feedback.futures import branches
from mtrl_ray.monitoring.recorder import read_metrics
from mtrl_ray.monitoring.view import Silent
from mtrl_ray.run import checkpoint, trainer
from mtrl_ray.run.folder import resumed_settings, write_settings
from tests.support.algorithms import settings_with

TREE: dict[str, Any] = {
    "name": "refuel",
    "contexts": 6,
    "samples": 2,
    "overlong_penalty": 0.1,
    "improvement": {"minibatch_conversations": 6, "epochs": 1},
}


@pytest.fixture(scope="module")
def stepping(ray_cluster: None, quick: list[str], tmp_path_factory: pytest.TempPathFactory):
    """A trainer whose iterations the tests make themselves; about every third conversation fails for good."""
    trouble = ["environment.options={trouble: some}", "rollout.retries=0", "rollout.data_errors=1"]
    made = trainer.Trainer(settings_with(TREE, quick, tmp_path_factory.mktemp("refuel"), "stepping", *trouble))
    yield made
    made.stop()


def test_an_iteration_learns_from_pairs(stepping):
    before = ray.get(stepping.system.learner.weights(900)).buffer
    metrics = stepping.step()
    firsts, continued = metrics["collect/score_n"], metrics["branch/score_n"]
    assert 0 < firsts < 12 and continued == firsts, "a branch has the user of its conversation, who did not fail"
    assert metrics["collect/conversations"] == firsts + continued == metrics["replay/conversations"]
    assert metrics["futures/pairs"] + metrics["futures/alike"] == continued and metrics["futures/pairs"] > 0
    assert metrics["improve/pairs"] == metrics["futures/pairs"] and metrics["improve/policy_steps"] > 0
    assert metrics["improve/loss"] > 0 and metrics["improve/kl_update"] > 0
    assert (ray.get(stepping.system.learner.weights(901)).buffer != before).any()


def test_a_killed_run_recalls_branches_too(ray_cluster, quick, tmp_path):
    settings = settings_with(TREE, quick, tmp_path, "whole", "environment.name=sales")
    trainer.run(settings, Silent())
    rows = read_metrics(settings.run_folder)
    assert [row["collect/conversations"] for row in rows] == [24, 24] and rows[1]["improve/pairs"] > 0
    shutil.copytree(settings.run_folder, tmp_path / "killed")
    shutil.rmtree(checkpoint.listed(tmp_path / "killed" / "checkpoints")[-1])  # as if it had died in iteration 2
    again = resumed_settings(tmp_path / "killed", ["run.name=killed"])
    write_settings(again)
    trainer.run(again, Silent(), resume=True)
    resumed = read_metrics(tmp_path / "killed")
    assert resumed[1]["faults/reused"] == 24, "12 conversations and their 12 branches"
    for name in ("collect/score_mean", "branch/score_mean", "improve/loss", "improve/pairs"):
        assert resumed[1][name] == pytest.approx(rows[1][name], abs=1e-6)


def test_a_branch_has_the_history_of_its_conversation(stepping):
    system = stepping.system
    logged = system.rollout(6, 2)
    held = {one.id: one for one in from_table(ray.get(logged.table))}
    assert set(held) == set(logged.ids)
    drawn = branches(logged.leases, list(held.values()), 2, seed=0)
    states = {lease.id: (parent, held[parent].agent_turns[len(lease.given)]) for lease, parent in drawn}
    for one in from_table(ray.get(system.branch([lease for lease, _ in drawn]).table)):
        parent, turn = states[one.id]
        assert one.history(turn) == held[parent].history(turn) and one.context_id == held[parent].context_id
    assert set(system.rollout(6, 2).ids) == set(held), "the branches are no conversations of it"
    system.take_metrics()
