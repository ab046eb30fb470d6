"""Preferences: complements to the last bit, noise, who has an oracle, win rates, and an LLM that compares."""

import re
from dataclasses import replace
from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrl_envs import measure
from mtrl_envs.education.environment import Education
from mtrl_envs.llm.pair_judge import LLMPairJudge, parse_preference, transcript
from mtrl_envs.llm.user import LLMSettings
from mtrl_envs.preferences import Noise, bradley_terry, probability, require_oracle, uniform
from mtrl_envs.registry import make
from mtrl_envs.win_rates import context_win_rates, scripted_win_rate, win_rate
from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, from_table, to_table
from mtrl_ray.errors import ConfigurationError, DataError, EngineError
from tests.envs.test_llm import Endpoint, endpoint  # noqa: F401

KINDS = ("expected", "flipped", "label")


def talk(name: str, score: float = 0.5, context: str = "x", text: str = "yes") -> Conversation:
    turns = [Turn(Role.SYSTEM, "Help."), Turn(Role.USER, "Hi."), Turn(Role.AGENT, text)]
    return Conversation(name, "car_dealer", "train", context, turns, score, StopReason.OUTCOME)


def sale(name: str, thousands: float) -> Conversation:
    return replace(talk(name), metrics={"reward": thousands})


@given(difference=st.floats(-1e4, 1e4), share=st.floats(0, 1), kind=st.sampled_from(KINDS), seed=st.integers(0, 9))
def test_complements_are_exact(difference, share, kind, seed):
    noise = Noise(share, kind, seed)
    there = probability(noise.apply(bradley_terry(difference), "a", "b"))
    back = probability(noise.apply(bradley_terry(-difference), "b", "a"))
    assert there == 1.0 - back and back == 1.0 - there and 0.0 <= there <= 1.0
    assert probability(noise.apply(0.0, "a", "a")) == 0.5


def test_bradley_terry_is_the_logistic_function():
    for difference in (-3.0, -0.1, 0.0, 2.5):
        assert probability(bradley_terry(difference)) == pytest.approx(1 / (1 + exp(-difference)), abs=1e-15)


def test_noise_does_what_its_kind_says():
    pairs = [(f"a{n}", f"b{n}") for n in range(3000)]
    assert probability(Noise(0.2).apply(0.4, "a", "b")) == pytest.approx(0.8 * 0.9 + 0.2 * 0.1)
    flipped = [Noise(0.2, "flipped", 1).apply(0.4, *pair) for pair in pairs]
    assert set(flipped) == {0.4, -0.4}
    assert sum(margin < 0 for margin in flipped) / 3000 == pytest.approx(0.2, abs=0.025)
    labels = [probability(Noise(0.2, "label", 1).apply(0.4, *pair)) for pair in pairs]
    assert set(labels) == {0.0, 1.0}
    assert sum(labels) / 3000 == pytest.approx(0.74, abs=0.025)
    others = [Noise(0.2, "flipped", 2).apply(0.4, *pair) for pair in pairs]
    assert sum(one != other for one, other in zip(flipped, others, strict=True)) > 500, "another seed, other flips"


def test_what_is_drawn_is_uniform_and_fixed():
    numbers = [uniform(str(n)) for n in range(2000)]
    assert 0 <= min(numbers) < 0.01 and 0.99 < max(numbers) < 1
    assert uniform("0/flipped/a/b") == pytest.approx(0.12783464, abs=1e-8)


def test_environments_without_an_oracle_name_those_with_one():
    first, second = talk("a"), talk("b")
    sentence = (
        "environment 'sales' has no preference oracle; car_dealer and education have one, or take preferences from"
    )
    with pytest.raises(
        ConfigurationError, match="environment 'sales' has no preference oracle; define its method prefer"
    ):
        make("sales").prefer(first, second)
    with pytest.raises(ConfigurationError, match=sentence):
        require_oracle(make("sales"))
    environment = make("car_dealer")
    assert require_oracle(environment) == environment.prefer


def test_car_dealer_prefers_the_higher_price():
    prefer = make("car_dealer").prefer
    assert prefer(sale("a", 40), sale("b", 20)) == pytest.approx(1 / (1 + exp(-2)))
    assert make("car_dealer", preference_scale=5).prefer(sale("a", 40), sale("b", 20)) == pytest.approx(
        1 / (1 + exp(-4))
    )
    assert prefer(sale("a", 30), sale("b", 30)) == 0.5
    noisy = make("car_dealer", preference_noise=0.5).prefer
    assert noisy(sale("a", 40), sale("b", 0)) == 0.5
    environment = make("car_dealer")
    expert, greedy = (next(measure.conversations(environment, name, 1)) for name in ("expert", "greedy"))
    assert prefer(expert, greedy) > 0.6 > 0.5 > prefer(greedy, expert)


def test_only_conversations_on_one_context_are_compared():
    prefer = make("car_dealer").prefer
    with pytest.raises(DataError, match=r"'a' and 'b' are on different contexts \(train 'x' and train 'y'\)"):
        prefer(sale("a", 1), replace(sale("b", 1), context_id="y"))
    with pytest.raises(DataError, match="'b' is of environment 'sales'; 'car_dealer' compares its own"):
        prefer(sale("a", 1), replace(sale("b", 1), environment="sales"))
    with pytest.raises(DataError, match="'a' has no metric 'reward'"):
        prefer(talk("a"), sale("b", 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preference_scale": 0}, "car_dealer: preference_scale is 0; it has to be a number above 0"),
        ({"preference_noise": 2}, "car_dealer: preference_noise is 2; it has to be a number from 0 to 1"),
        ({"preference_noise_kind": "loud"}, "kind is 'loud': input should be 'expected', 'flipped' or 'label'"),
        ({"preference_seed": 0.5}, "preference_seed is 0.5: input should be a valid integer"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(ConfigurationError, match=message):
        make("car_dealer", **options)


def by_score(first: Conversation, second: Conversation) -> float:
    return 0.5 + 0.5 * (first.score - second.score)


def test_win_rates_are_paired_by_context():
    ours = [talk("a", 1.0, "x"), talk("b", 0.0, "x"), talk("c", 0.5, "y")]
    theirs = [talk("d", 0.25, "y"), talk("e", 0.0, "x")]
    rates = context_win_rates(ours, theirs, by_score)
    assert rates == {("train", "x"): 0.75, ("train", "y"): 0.625}
    there, back = win_rate(ours, theirs, by_score), win_rate(theirs, ours, by_score)
    assert (there.mean, there.n) == (0.6875, 2) and there.mean + back.mean == 1
    assert (1 - back.high, 1 - back.low) == pytest.approx((there.low, there.high))
    with pytest.raises(DataError, match=r"1 contexts are on one side .* for example 'y' of split 'train'"):
        context_win_rates(ours, theirs[1:], by_score)
    with pytest.raises(ConfigurationError, match="at least one conversation"):
        win_rate([], [], by_score)


def test_the_interval_narrows_with_contexts_not_with_comparisons():
    few = [talk(f"{n}", float(n % 2), str(n)) for n in range(20)]
    even = [talk(f"o{n}", 0.5, str(n)) for n in range(20)]
    doubled = [replace(one, id=f"{one.id}/{copy}") for one in few for copy in range(5)]
    once, again = (win_rate(side, even, by_score) for side in (few, doubled))
    assert once == again


@pytest.mark.parametrize("kind", KINDS)
def test_policies_are_compared_on_conversations_that_bear_the_same_ids(kind):
    """Held-out conversations of every policy have the ids of their contexts."""
    environment = make("education", preference_noise=0.1, preference_noise_kind=kind)
    better, worse = (list(measure.conversations(environment, name, 40)) for name in ("expert", "random"))
    for one, other in zip(better, worse, strict=True):
        one.id = other.id = one.context_id
        assert environment.prefer(one, other) == 1.0 - environment.prefer(other, one)
        assert environment.prefer(one, one) == 0.5
    assert win_rate(better, worse, environment.prefer).mean == pytest.approx(0.9, abs=0.15)


def test_car_dealer_win_rate():
    rate = scripted_win_rate(make("car_dealer"), "expert", "greedy", 64)
    assert rate.low > 0.8 and rate.n == 64
    with pytest.raises(ConfigurationError, match="'medical' has no preference oracle"):
        scripted_win_rate(make("medical"), "expert", "greedy", 2)


def judge_at(served: Endpoint, criterion: str = Education.criterion, **more) -> LLMPairJudge:
    settings = LLMSettings.parse("judge", {"base_url": served.url, "model": "m", "retries": 0})
    return LLMPairJudge(settings, criterion, **more)


def favours(words: str, strength: float, place: float):
    """An LLM that likes conversations with these words, and, by `place`, whatever it reads first."""

    def answer(body):
        read = body["messages"][1]["content"]
        liked = read.split("Conversation B:")[0].count(words) - read.split("Conversation B:")[1].count(words)
        return 200, f"Let me think.\nPREFERENCE: {5 + strength * liked + place}"

    return answer


def test_an_llm_that_favours_a_place_does_not_favour_a_conversation(endpoint: Endpoint):  # noqa: F811
    good, bad = talk("a", text="Sure, gladly."), talk("b", text="No.")
    endpoint.answer = favours("gladly", 3.0, 1.5)
    judge = judge_at(endpoint)
    assert judge.prefer(good, bad) == pytest.approx(0.8)
    assert judge.prefer(bad, good) == 1.0 - judge.prefer(good, bad)
    endpoint.answer = favours("gladly", 0.0, 5.0)
    assert judge.prefer(good, bad) == 0.5


def test_what_the_llm_reads(endpoint: Endpoint):  # noqa: F811
    endpoint.answer = favours("x", 0, 0)
    first, second = talk("a", 0.987), talk("b")
    first.turns[2].sent = "maybe"
    judge_at(endpoint).prefer(first, second)
    system, pair = (message["content"] for message in endpoint.requests[0]["messages"])
    assert Education.criterion in system and "PREFERENCE: n" in system
    assert transcript(first) == "User: Hi.\nAssistant: yes (sent instead: maybe)"
    assert pair == f"Conversation A:\n{transcript(first)}\n\nConversation B:\n{transcript(second)}"
    assert "987" not in pair


def test_answers_of_the_llm():
    good = {"PREFERENCE: 7": 7, "preference : 0": 0, "PREFERENCE: 3 no\nPREFERENCE: 9.5.": 9.5, "PREFERENCE: 10": 10}
    assert {answer: parse_preference(answer) for answer in good} == good
    for written in (
        "PREFERENCE: **7**",
        "**PREFERENCE:** 7",
        "**PREFERENCE: 7**",
        "`PREFERENCE: 7/10`",
        "PREFERENCE: n = 7",
        "PREFERENCE: [7]",
        '{"preference": 7}',
    ):
        assert parse_preference(written) == 7, written
    for wrong in ("", "7", "PREFERENCE: A", "PREFERENCE: 11", "PREFERENCE: 1000", "PREFERENCE: -1"):
        assert parse_preference(wrong) is None, wrong


def test_an_answer_without_a_number_is_asked_again(endpoint: Endpoint):  # noqa: F811
    endpoint.answer = lambda body: (200, "I like A." if body["seed"] == 4 else "PREFERENCE: 6")
    assert judge_at(endpoint, seed=4).prefer(talk("a"), talk("b")) == 0.5
    assert [request["seed"] for request in endpoint.requests] == [4, 5, 4, 5]
    endpoint.answer = lambda body: (200, "I like A.")
    with pytest.raises(DataError, match=r"gave 2 answers without a number .* ends 'I like A\.'"):
        judge_at(endpoint, tries=2).prefer(talk("a"), talk("b"))
    endpoint.answer = lambda body: (500, {})
    with pytest.raises(EngineError, match=r"the LLM judge's endpoint .* HTTP status 500"):
        judge_at(endpoint).prefer(talk("a"), talk("b"))
    with pytest.raises(DataError, match="on different contexts"):
        judge_at(endpoint).prefer(talk("a"), talk("b", context="y"))
    with pytest.raises(ConfigurationError, match="it needs a criterion and at least one try"):
        judge_at(endpoint, criterion=" ")


@settings(max_examples=30, deadline=None)
@given(
    names=st.tuples(st.sampled_from(measure.AGENTS), st.sampled_from(measure.AGENTS)),
    index=st.integers(0, 40),
    seeds=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    cyclic=st.sampled_from((0.0, 0.5, 1.0)),
    kind=st.sampled_from(KINDS),
)
def test_an_oracle_is_antisymmetric_deterministic_and_reads_the_journaled_form(names, index, seeds, cyclic, kind):
    environment = Education(cyclic=cyclic, preference_noise=0.2, preference_noise_kind=kind)
    context = environment.context("test", index)
    first, second = (measure.rollout(environment, context, *one) for one in zip(names, seeds, strict=True))
    there, back = environment.prefer(first, second), environment.prefer(second, first)
    assert there == 1.0 - back and back == 1.0 - there and 0.0 <= there <= 1.0
    kept = from_table(to_table([first, second]))
    assert environment.prefer(*kept) == there


def test_preferences_in_the_docs_are_the_measurements():
    from tests.envs.test_docs_example import PAGE

    section = PAGE.read_text().split("## Preferences")[1].split("\n## ")[0]
    rows = re.findall(r"\| `(\w+)` \| `(\w+)` \| `(\w+)` \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|", section)
    assert len(rows) == 6
    for name, agent, opponent, *numbers in rows:
        rate = scripted_win_rate(make(name), agent, opponent, 256)
        assert [f"{value:.3f}" for value in (rate.mean, rate.low, rate.high)] == numbers, (name, agent, opponent)
