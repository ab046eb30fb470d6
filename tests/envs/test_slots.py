"""The option `horizon`: independent slots, exact gains, and scripted agents of known strength."""

import itertools
from statistics import fmean

import pytest

from mtrl_envs import check, measure
from mtrl_envs.base import Environment
from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import Conversation, StopReason
from mtrl_ray.errors import ConfigurationError

NAMES = ("math_tutoring", "document_writing", "medical")
GREEDY = {"math_tutoring": 1 / 2, "document_writing": 1 / 3, "medical": 1 / 2}
"""One of the topics that its last fact leaves open."""


def talks(environment: Environment, agent: str, contexts: int, split: str = "test") -> list[Conversation]:
    return list(measure.conversations(environment, agent, contexts, split, seed=0))


def gains(talk: Conversation) -> list[float]:
    return [talk.metrics[f"gain_{turn}"] for turn in range(len(talk.agent_turns))]


@pytest.mark.parametrize(("name", "turns"), itertools.product(NAMES, (3, 6, 12)))
def test_the_expert_finds_every_slot_in_as_many_turns(name: str, turns: int) -> None:
    for talk in talks(make(name, horizon=turns, noise=0), "expert", 30):
        assert len(talk.agent_turns) == turns
        assert talk.stop == StopReason.OUTCOME
        assert talk.score == 1.0
        assert gains(talk) == [1 / turns] * turns


@pytest.mark.parametrize("name", NAMES)
def test_greedy_is_right_by_chance_and_gains_sum_to_the_score(name: str) -> None:
    found = talks(make(name, horizon=12, noise=0), "greedy", 100)
    assert fmean(talk.score for talk in found) == pytest.approx(GREEDY[name], abs=0.04)
    for talk in found:
        assert sum(gains(talk)) == pytest.approx(talk.score) == pytest.approx(sum(talk.rewards))
    by_turn = [fmean(gains(talk)[turn] for talk in found) * 12 for turn in range(12)]
    assert max(by_turn) - min(by_turn) < 0.3


@pytest.mark.parametrize("name", NAMES)
def test_noise_loses_its_share_of_the_slots(name: str) -> None:
    score = fmean(talk.score for talk in talks(make(name, horizon=12, noise=0.3), "expert", 100))
    assert score == pytest.approx(0.7, abs=0.04)


def test_a_drawn_outcome_is_the_share_on_average() -> None:
    found = talks(make("medical", horizon=6, bernoulli=True), "greedy", 600)
    assert {talk.score for talk in found} == {0.0, 1.0}
    for talk in found:
        assert sum(gains(talk)) == pytest.approx(talk.metrics["expected"])
    assert fmean(talk.score for talk in found) == pytest.approx(fmean(t.metrics["expected"] for t in found), abs=0.06)


@pytest.mark.parametrize("name", NAMES)
def test_a_turn_changes_nothing_for_later_turns(name: str) -> None:
    environment = make(name, horizon=3, noise=0)
    context = environment.context("train", 4)
    silent, asking = environment.user(context, 1), environment.user(context, 1)
    assert silent.opening() == asking.opening()
    right = measure.rollout(environment, context, "expert", seed=0)
    question = right.turns[right.agent_turns[0]].text
    lost, found = silent.reply("Hello."), asking.reply(question)
    assert lost.text.partition("Next:")[2] == found.text.partition("Next:")[2] != ""


@pytest.mark.parametrize("name", NAMES)
def test_asking_for_everything_finds_nothing(name: str) -> None:
    environment = make(name, horizon=3, noise=0)
    everything = {
        "math_tutoring": "What are the details? Exact or rounded?",
        "document_writing": "When, where, formal or casual, and how long?",
        "medical": "Any other symptoms? Since when? Any allergies?",
    }
    for index in range(20):
        user = environment.user(environment.context("train", index), 0)
        user.opening()
        while user.reply(everything[name]).stop is None:
            pass
        assert user.outcome().score == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_keeps_its_promises(name: str) -> None:
    checked = check.check(make(name, horizon=12), 50, 20)
    assert not [finding for finding in checked.findings if finding.state == "failed"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"horizon": 0}, "whole number of turns"),
        ({"horizon": True}, "valid integer"),
        ({"bernoulli": True}, "without a horizon"),
        ({"horizon": 3, "bernoulli": 1}, "valid boolean"),
        ({"horizon": 3, "table": True}, "exclude one another"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make("medical", **options)
