"""MTPO on a real Ray: every way it can be set, pairs that lost a member, the critic's head start, steps that shorten, models
from a folder."""

import json
from typing import Any

import numpy as np
import pytest
import ray

from mtrl_ray.algorithms.mtpo import steered
from mtrl_ray.algorithms.registry import make_algorithm
from mtrl_ray.dialogue.conversation import from_table
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.feedback.preferences import compare_pairs, pair_up
from mtrl_ray.monitoring.view import Silent
from mtrl_ray.run import trainer
from mtrl_ray.run.recipes import load
from mtrl_ray.tabular.updates import learning_rate
from tests.support.algorithms import settings_with
from tests.support.endpoint import Endpoint

TREE: dict[str, Any] = {
    "name": "mtpo",
    "contexts": 12,
    "critic_warmup": 0,
    "improvement": {"minibatch_conversations": 6},
    "advantages": {"fit": {"epochs": 1, "minibatch_conversations": 6}},
}
RIVALS = "environment.name=tests.support.rival_letters:RivalLetters"


@pytest.fixture(scope="module")
def stepping(ray_cluster: None, quick: list[str], tmp_path_factory: pytest.TempPathFactory):
    """A trainer whose iterations the tests make themselves; about every third conversation fails for good."""
    overrides = [
        "environment.options={trouble: some}",
        "rollout.retries=0",
        "rollout.data_errors=1",
        "rollout.reference=true",
    ]
    settings = settings_with(TREE, quick, tmp_path_factory.mktemp("mtpo"), "stepping", RIVALS, *overrides)
    made = trainer.Trainer(settings)
    yield made
    made.stop()


VARIANTS: dict[str, dict[str, Any]] = {
    "turn": {"alpha": 0.05},
    "token": {"advantages": {"value": "token"}, "improvement": {"previous_kl": 0.1}},
    "hybrid": {"advantages": {"value": "hybrid"}, "preferences": {"flip": 0.3}},
    "mixture": {"variant": "mtpo_tau", "tau": 0.3},
    "four samples": {"samples": 4},
    "three samples, learned preferences": {"samples": 3, "model": {"refresh": True}},
    "plain": {"improvement": {"objective": "plain"}},
    "reward": {"variant": "reward", "samples": 1},
    "learned preferences": {"model": {"refresh": True, "fit": {"minibatch_conversations": 6}}},
    "rlhf": {"variant": "rlhf", "model": {"refresh": True, "fit": {"epochs": 2}}},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_way_to_set_it_learns(stepping, variant):
    stepping.algorithm = make_algorithm(TREE | variant)
    before = ray.get(stepping.system.learner.weights(900)).buffer
    metrics = stepping.step()
    assert (ray.get(stepping.system.learner.weights(901)).buffer != before).any()
    assert np.isfinite(metrics["advantages/deviation"]) and metrics["improve/policy_steps"] > 0
    corrected = abs(metrics["improve/importance_weight"] - 1) > 1e-5
    assert corrected == (variant.get("variant") == "mtpo_tau")
    if stepping.algorithm.settings.judges:
        pairs = metrics["preferences/compared"]
        learned = metrics["improve/conversations"]
        assert metrics["preferences/unpaired"] == metrics["collect/score_n"] - learned
        assert 2 * pairs > learned if stepping.algorithm.settings.samples > 2 else 2 * pairs == learned
        assert metrics["advantages/terminal"] == pytest.approx(0.5, abs=1e-6) or "reward_model/loss" in metrics
        assert (variant.get("model") is not None) == any(name.endswith("_model/pairs") for name in metrics)
    else:
        assert metrics["advantages/terminal"] == pytest.approx(metrics["collect/score_mean"], abs=1e-5)


@pytest.mark.parametrize("samples", [2, 4])
def test_nash_md_learns_from_its_own_samples_against_the_mixture(stepping, samples):
    tree = TREE | {"variant": "nash_md", "tau": 0.3, "samples": samples, "alpha": 0.01}
    stepping.algorithm = make_algorithm(tree)
    metrics = stepping.step()
    own, pairs = metrics["improve/conversations"], metrics["preferences/compared"]
    assert (own < pairs) if samples > 2 else (own == pairs)
    assert metrics["advantages/alpha"] == 0.01
    assert abs(metrics["improve/importance_weight"] - 1) < 1e-5, "its own samples need no correction"


def test_alpha_follows_the_distance_and_a_checkpoint_keeps_it(stepping):
    tree = TREE | {"alpha": 0.02, "kl_target": 1e-6}
    stepping.algorithm = make_algorithm(tree)
    first, second = stepping.step(), stepping.step()
    assert first["advantages/alpha"] == 0.02
    moved = steered(0.02, 0.02, first["advantages/kl_conversation"], 1e-6)
    assert second["advantages/alpha"] == pytest.approx(moved) != 0.02
    again = make_algorithm(tree)
    again.restore(json.loads(json.dumps(stepping.algorithm.state())))
    assert again.state() == stepping.algorithm.state() and again.state()["alpha"] != 0.02
    constant = make_algorithm(TREE)
    constant.restore({})
    assert constant.state() == {}


def test_alpha_steers_the_distance_to_its_target():
    """A policy that moves a third of the way to where α lets it go, KL = 0.02 / α, from the start policy on."""
    for target in (1.0, 2.0, 4.0, 8.0):
        alpha, kl = 0.005, 0.0
        for _ in range(60):
            kl += 0.33 * (0.02 / alpha - kl)
            alpha = steered(alpha, 0.005, kl, target)
        assert kl == pytest.approx(target, rel=0.1)
        assert 0.005 / 30 <= alpha <= 0.005 * 30


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"alpha": 0.0, "kl_target": 1.0}, "alpha is 0, which no factor can change"),
        ({"samples": 1}, "compares conversations; use at least 2"),
        ({"samples": 3, "variant": "nash_md"}, "use an even number"),
    ],
)
def test_settings_that_cannot_work_are_refused(more, said):
    with pytest.raises(ConfigurationError, match=said):
        make_algorithm(TREE | more)


def test_a_best_response_learns_from_its_own_half_of_the_pairs(stepping):
    stepping.algorithm = make_algorithm(TREE | {"variant": "best_response", "alpha": 0.0})
    before = ray.get(stepping.system.learner.weights(900)).buffer
    metrics = stepping.step()
    assert metrics["improve/conversations"] == metrics["preferences/compared"] > 0
    assert (ray.get(stepping.system.learner.weights(901)).buffer != before).any()


def test_pairs_that_lost_a_member_take_no_part(stepping):
    stepping.algorithm = make_algorithm(TREE)
    system, settings = stepping.system, stepping.algorithm.settings
    logged = system.rollout(8, 2)
    conversations, terminal = compare_pairs(system, pair_up(system, logged.window(1)), settings.preferences)
    talks, found = from_table(ray.get(conversations)), ray.get(terminal)
    everyone = from_table(ray.get(system.buffer.take.remote(logged.ids)))
    contexts = [one.context_id for one in everyone]
    assert {one.id for one in talks} == {one.id for one in everyone if contexts.count(one.context_id) == 2}
    assert 0 < len(talks) < len(everyone)
    prefer = settings.preferences.judge(stepping.settings.environment)
    for first, second, p, q in zip(talks[::2], talks[1::2], found[::2], found[1::2], strict=True):
        assert p == pytest.approx(prefer(first, second)) and q == pytest.approx(prefer(second, first))
    system.take_metrics()
    system.iteration += 1


class Told(Silent):
    """Remembers notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_an_llm_compares_and_what_it_could_not_is_told(stepping, monkeypatch):
    first: dict[str, str] = {}

    def answer(body: dict[str, Any]) -> tuple[int, str]:
        pair = "".join(sorted(body["messages"][1]["content"]))  # in either order
        return 200, "I cannot say." if first.setdefault("pair", pair) == pair else "PREFERENCE: 6"

    endpoint, told = Endpoint(), Told()
    endpoint.answer = answer
    llm = {"base_url": endpoint.url, "model": "judge", "retries": 0}
    stepping.algorithm = make_algorithm(TREE | {"preferences": {"source": "llm", "llm": llm}})
    monkeypatch.setattr(stepping.system, "view", told)
    iteration = stepping.system.iteration + 1
    try:
        metrics = stepping.step()
    finally:
        endpoint.close()
    assert metrics["preferences/failed"] >= 1 and metrics["preferences/compared"] >= 1
    failed = int(metrics["preferences/failed"])
    said = f"failures in iteration {iteration}, comparing conversations: {failed} x DataError: the LLM judge gave 3 answers"
    assert any(note.startswith(said) for note in told.notes), told.notes


def test_the_critic_goes_first(stepping):
    system = stepping.system
    stepping.algorithm = make_algorithm(TREE | {"critic_warmup": system.iteration + 1})
    version, before = system.version, ray.get(system.learner.weights(900)).buffer
    metrics = stepping.step()
    assert "improve/policy_steps" not in metrics and metrics["advantages/value_loss"] > 0
    assert system.version == version and (ray.get(system.learner.weights(901)).buffer == before).all()
    assert stepping.step()["improve/policy_steps"] == 2 and system.version == version + 1


def test_steps_shorten_as_in_the_theorems(stepping):
    loss = make_algorithm(TREE | {"improvement": {"decay": 3}}).settings.improvement
    theorems = [float(learning_rate(np.array([0.1]), step)[0]) for step in range(1, 9)]
    assert [loss.rate(n) / loss.rate(0) for n in range(8)] == pytest.approx([eta / theorems[0] for eta in theorems])
    moved = []
    for decay in (None, 1e-6):
        loss = TREE["improvement"] | {"epochs": 2, "decay": decay}
        stepping.algorithm = make_algorithm(TREE | {"improvement": loss})
        assert stepping.system.iteration > 0
        moved.append(stepping.step()["improve/kl_step"])
    assert 0 <= moved[1] < 1e-3 * moved[0]


def test_a_run_with_models_that_were_fitted_before(stepping, tmp_path):
    """What the learner has after the variants above, kept as a folder, is what a run can begin with."""
    ray.get(stepping.system.learner.save(tmp_path))
    for variant, kind in (("mtpo", "preference"), ("rlhf", "reward")):
        tree = TREE | {"variant": variant, "model": {"folder": str(tmp_path)}}
        stepping.algorithm = make_algorithm(tree)
        stepping.algorithm.check(stepping.settings)
        stepping.algorithm.begin(stepping.system)
        metrics = stepping.step()
        assert ("preferences/compared" in metrics) is False and np.isfinite(metrics["advantages/deviation"])
        with pytest.raises(
            ConfigurationError, match=f"which has no {kind} model; mtrl fit-preferences --save makes one"
        ):
            make_algorithm(tree | {"model": {"folder": str(tmp_path / "policy")}}).check(stepping.settings)


def test_what_cannot_work_is_said_before_anything_starts(quick, tmp_path):
    with pytest.raises(ConfigurationError, match="'letters' has no preference oracle"):
        load("sales", [*quick, f"algorithm={json.dumps(TREE)}"])
    with pytest.raises(ConfigurationError, match=r"variant is mtpo_tau, .* set rollout.reference: true"):
        load("sales", [*quick, RIVALS, f"algorithm={json.dumps(TREE | {'variant': 'mtpo_tau'})}"])
    for change, sentence in (
        ({"samples": 1}, "samples is 1 and variant is mtpo, which compares conversations; use at least 2"),
        ({"variant": "mtpo_tau", "improvement": {"importance_cap": None}}, "improvement.importance_cap is null"),
        ({"improvement": {"kl": {"kind": "k2", "place": "loss"}}}, "kl is set by algorithm.alpha"),
        ({"variant": "rlhf"}, "variant is rlhf, which needs a reward model"),
        ({"variant": "reward", "model": {"refresh": True}}, "variant is reward, which takes the task's own score"),
        ({"model": {}}, "model has neither a folder, nor first, nor refresh"),
        ({"preferences": {"source": "llm"}}, "source is llm, which needs llm with at least base_url and model"),
        ({"preferences": {"flip": 0.7}}, "algorithm.preferences.flip is 0.7"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            make_algorithm(TREE | change)
