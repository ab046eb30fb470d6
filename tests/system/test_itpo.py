"""ITPO on a real Ray: every way it can be set, groups that lost members, a run on `sales` that is resumed."""

from typing import Any

import numpy as np
import pytest
import ray
from transformers import AutoModelForCausalLM

from mtrl_ray.algorithms.registry import make_algorithm
from mtrl_ray.dialogue.conversation import from_table, to_table
from mtrl_ray.errors import DataError
from mtrl_ray.evaluation.turn_ranks import TURNS, stability
from mtrl_ray.feedback.turn_weights import judge_turns
from mtrl_ray.monitoring.recorder import read_metrics
from mtrl_ray.monitoring.view import Silent
from mtrl_ray.run import checkpoint, trainer
from mtrl_ray.run.folder import resumed_settings, write_settings
from tests.support.algorithms import settings_with

TREE: dict[str, Any] = {"name": "itpo", "contexts": 4, "samples": 3, "improvement": {"minibatch_conversations": 6}}


@pytest.fixture(scope="module")
def stepping(ray_cluster: None, quick: list[str], tmp_path_factory: pytest.TempPathFactory):
    """A trainer whose iterations the tests make themselves; about every third conversation fails for good."""
    overrides = ["environment.options={trouble: some}", "rollout.retries=0", "rollout.data_errors=1"]
    settings = settings_with(TREE, quick, tmp_path_factory.mktemp("itpo"), "stepping", *overrides)
    made = trainer.Trainer(settings)
    yield made
    made.stop()


VARIANTS: dict[str, dict[str, Any]] = {
    "norm_itpo rloo": {},
    "prime ppo": {"rewards": {"scheme": "prime"}, "advantages": {"estimator": "ppo"}},
    "itpo grpo": {"rewards": {"scheme": "itpo"}, "advantages": {"estimator": "grpo"}},
    "value rloo": {"rewards": {"scheme": "value"}},
    "judge pooled": {"rewards": {"scheme": "judge"}, "advantages": {"baseline": "pooled"}},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_way_to_set_it_learns(stepping, variant):
    stepping.algorithm = make_algorithm(TREE | variant)
    before = ray.get(stepping.system.learner.weights(900)).buffer
    metrics = stepping.step()
    assert metrics["improve/conversations"] == metrics["collect/score_n"] and metrics["improve/policy_steps"] > 0
    assert np.isfinite(metrics["rewards/outcome"]) and metrics["advantages/deviation"] > 0
    assert (ray.get(stepping.system.learner.weights(901)).buffer != before).any()
    scheme = stepping.algorithm.settings.rewards.scheme
    assert ("prm/loss" in metrics) == (scheme in ("prime", "itpo", "norm_itpo"))
    assert ("judge/judged" in metrics) == (scheme == "judge")


def test_groups_that_lost_members_are_compared_with_who_is_there(stepping):
    stepping.algorithm = make_algorithm(TREE)
    system = stepping.system
    logged = system.rollout(8, 3)
    held = from_table(ray.get(system.buffer.take.remote(logged.ids)))
    members = {talked.context_id: [] for talked in held}
    for talked in held:
        members[talked.context_id].append(talked)
    sizes = {len(group) for group in members.values()}
    assert len(held) < 24 and len(sizes) > 1, "some conversations failed, not all of the same contexts"
    table = logged.window(1)
    outcome = stepping.algorithm.settings.rewards.model_copy(update={"scheme": "outcome"})
    rewards, _ = system.learn(outcome, table)
    plain = stepping.algorithm.settings.advantages.model_copy(update={"whiten": False})
    found = ray.get(system.learn(plain, table, rewards)[0])
    lengths = [int(talked.mask.sum()) for talked in from_table(ray.get(table))]
    price = stepping.algorithm.settings.rewards.length_penalty
    worth = {one.id: one.score - price * sum(len(one.turns[k].text.split()) for k in one.agent_turns) for one in held}
    for talked, own in zip(from_table(ray.get(table)), np.split(found, np.cumsum(lengths)[:-1]), strict=True):
        others = [worth[one.id] for one in members[talked.context_id] if one.id != talked.id]
        expected = worth[talked.id] - np.mean(others) if others else 0.0
        np.testing.assert_allclose(own, expected, atol=1e-5)
    system.take_metrics()
    system.iteration += 1


def test_an_environment_without_a_record_cannot_judge(stepping):
    settings = make_algorithm(TREE).settings
    talks = from_table(ray.get(stepping.system.buffer.window.remote(1)))
    for talked in talks:
        talked.metrics = {}
    table = judge_turns(stepping.system, ray.put(to_table(talks)), settings.judge)
    with pytest.raises(DataError, match="no record of which turn mattered"), trainer.explained(stepping.folder):
        ray.get(table)
    with pytest.raises(ray.exceptions.RayTaskError):
        stepping.system.take_metrics()


def test_a_run_on_sales_keeps_its_reward_model_and_goes_on(ray_cluster, quick, tmp_path):
    settings = settings_with(TREE, quick, tmp_path, "sales", "environment.name=sales", "algorithm.turn_scores_every=1")
    summary = trainer.run(settings, Silent())
    assert summary["end"]["n"] == 8
    rows = read_metrics(settings.run_folder)
    assert [row["collect/score_n"] for row in rows] == [12, 12] and all(row["improve/groups"] == 4 for row in rows)
    assert rows[0]["prm/sum_deviation"] == 0.0 < rows[1]["prm/sum_deviation"], "it starts as its reference"
    assert rows[1]["improve/kl_reference"] > 0
    kept = checkpoint.listed(settings.run_folder / "checkpoints")[-1]
    learned, reference = (
        AutoModelForCausalLM.from_pretrained(kept / name).state_dict() for name in ("prm", "reference")
    )
    assert any((learned[name] != reference[name]).any() for name in learned)
    write_settings(resumed_settings(settings.run_folder, ["run.iterations=3"]))
    trainer.run(resumed_settings(settings.run_folder, ["run.iterations=3"]), Silent(), resume=True)
    rows = read_metrics(settings.run_folder)
    assert len(rows) == 3 and rows[2]["prm/sum_deviation"] > 0
    ranks = stability(settings.run_folder)
    assert sorted(ranks) == [1, 2, 3], "the turns of the first evaluation were scored after every fit"
    assert all(-1 <= found[TURNS] <= 1 for found in ranks.values()) and ranks[3][TURNS] == pytest.approx(1)
