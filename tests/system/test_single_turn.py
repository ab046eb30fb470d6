"""The single-turn baselines on a real Ray: both methods with both kinds of feedback, and MTPO with a model fitted first."""

import json
from typing import Any

import numpy as np
import pytest
import ray

from mtrl_ray.algorithms.registry import make_algorithm
from mtrl_ray.dialogue.conversation import from_table
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.feedback.offline_pairs import divided, parted_pairs
from mtrl_ray.feedback.single_turns import matched
from mtrl_ray.learner.methods.pair_models import ConversationRewards, ResponseRewards
from mtrl_ray.run import trainer
from mtrl_ray.run.folder import prepare
from mtrl_ray.run.recipes import load

FIRST = {"contexts": 12, "fit": {"epochs": 1, "minibatch_conversations": 6}}
TREE: dict[str, Any] = {
    "name": "single_turn",
    "contexts": 8,
    "states": 12,
    "model": {"first": FIRST},
    "improvement": {"minibatch_conversations": 2, "epochs": 1},
}


@pytest.fixture(scope="module")
def stepping(ray_cluster: None, quick: list[str], tmp_path_factory: pytest.TempPathFactory):
    """A trainer whose iterations the tests make themselves."""
    mine = [
        f"run.folder={tmp_path_factory.mktemp('single_turn')}",
        "run.name=stepping",
        f"algorithm={json.dumps(TREE)}",
        "environment.name=tests.support.rival_letters:RivalLetters",
        "rollout.reference=true",
    ]
    settings = load("sales", [*quick, *mine])
    prepare(settings, fresh=False, command="mtrl train")
    made = trainer.Trainer(settings)
    yield made
    made.stop()


def begin(stepping, tree: dict[str, Any]) -> None:
    """As if the run had just begun, with this algorithm."""
    stepping.algorithm = make_algorithm(tree)
    stepping.algorithm.check(stepping.settings)
    stepping.algorithm.begin(stepping.system)


@pytest.mark.parametrize("feedback", ["reward", "value"])
@pytest.mark.parametrize("method", ["rlhf", "nash_md"])
def test_every_baseline_learns_from_a_model_fitted_first(stepping, method, feedback):
    begin(stepping, TREE | {"method": method, "feedback": feedback})
    before = ray.get(stepping.system.learner.weights(900)).buffer
    metrics = stepping.step()
    kind = {"rlhf": "reward", "nash_md": "preference"}[method]
    assert 0 < metrics["preferences/compared"] <= 12 and f"{kind}_model/calibration" in metrics
    assert metrics["improve/responses"] >= 24 and metrics["improve/policy_steps"] >= 2
    assert (ray.get(stepping.system.learner.weights(901)).buffer != before).any()
    if method == "nash_md":
        assert 0 < metrics["improve/score"] < 1, "probabilities"
    assert "preferences/compared" not in stepping.step(), "the model is fitted once"


def test_the_model_reads_the_responses_that_were_compared(stepping):
    system, settings = stepping.system, make_algorithm(TREE).settings
    pairs, preferred = parted_pairs(system, 12, settings.preferences, "value")
    talks, found = from_table(ray.get(pairs)), ray.get(preferred)
    system.take_metrics()
    assert len(talks) == len(found) and len(talks) > 8
    for first, second in zip(talks[::2], talks[1::2], strict=True):
        assert first.context_id == second.context_id and first.turns[:-1] == second.turns[:-1]
        assert first.turns[-1].tokens != second.turns[-1].tokens
    np.testing.assert_allclose(found[::2] + found[1::2], 1)
    (head, head_found), (tail, tail_found) = (ray.get(list(part)) for part in divided(pairs, preferred, 0.75))
    assert head.num_rows + tail.num_rows == len(talks) and head.num_rows % 2 == tail.num_rows % 2 == 0
    assert (len(head_found), len(tail_found)) == (head.num_rows, tail.num_rows)


def test_a_response_is_scored_as_the_conversation_that_ends_with_it(stepping):
    begin(stepping, TREE)
    stepping.step()
    system = stepping.system
    logged = system.rollout(8, 1)
    states = logged.states(8)
    table = logged.window(1)
    responses = system.respond(states, 1)
    same = system.respond(states, 1)
    scores = ray.get(system.learn(ResponseRewards(), table, responses)[0])
    np.testing.assert_allclose(
        ray.get(system.learn(ConversationRewards(), matched.remote(table, responses, same))[0]),
        np.repeat(scores, 2),
        atol=1e-5,
    )
    other = ray.get(system.respond(states, 1, stream="opponent"))
    assert other["tokens"].to_pylist() != ray.get(responses)["tokens"].to_pylist()
    system.take_metrics()
    system.iteration += 1


@pytest.mark.parametrize(("variant", "kind"), [("mtpo", "preference"), ("rlhf", "reward")])
def test_mtpo_with_a_model_fitted_first_asks_nobody_afterwards(stepping, variant, kind):
    tree = {"name": "mtpo", "variant": variant, "contexts": 6, "critic_warmup": 0, "model": {"first": FIRST}}
    begin(stepping, tree | {"improvement": {"minibatch_conversations": 6}})
    metrics = stepping.step()
    assert metrics["preferences/compared"] == 12
    assert metrics[f"{kind}_model/pairs"] == 10 and metrics["held_out_pairs/pairs"] == 2
    assert "preferences/compared" not in stepping.step()


def test_what_cannot_work_is_said_before_anything_starts(stepping):
    for change, sentence in (
        ({"model": {"refresh": True}}, "single_turn keeps the model it begins with"),
        ({"model": {"folder": "x", "first": FIRST}}, "begins with one of them"),
        ({"improvement": {"kl": {"coefficient": 0.1}}}, "kl is set by algorithm.alpha"),
        ({"improvement": {"estimator": "grpo"}, "responses": 1}, "a group needs at least 2 responses"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            make_algorithm(TREE | change)
    bare = stepping.settings.model_copy(
        update={"rollout": stepping.settings.rollout.model_copy(update={"reference": False})}
    )
    with pytest.raises(ConfigurationError, match=r"set rollout\.reference: true"):
        make_algorithm(TREE | {"method": "nash_md"}).check(bare)
