"""Who is compared with whom, and what becomes of pairs that lack a member or an answer."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrl_envs.base import Environment
from mtrl_envs.education.environment import Education
from mtrl_envs.preferences import Noise
from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, from_table, to_table
from mtrl_ray.errors import ConfigurationError, DataError, EngineError
from mtrl_ray.feedback.preferences import PreferenceSettings, compare, mean_values, pairs_of
from mtrl_ray.settings.tree import EnvironmentSettings, RolloutSettings
from tests.support.endpoint import Endpoint

QUIET = Noise()
ONCE = RolloutSettings(retries=0, data_errors=0.7)


def talk(context: int, sample: int, score: float = 0.5, iteration: int = 0) -> Conversation:
    turns = [Turn(Role.USER, "hi", tokens=[1]), Turn(Role.AGENT, "yes", [2], [-1.0], [0])]
    name = f"{iteration}-{context}-{sample}"
    return Conversation(
        name, "test", "train", f"x{context}", turns, score, StopReason.OUTCOME, iteration=iteration, sample=sample
    )


def by_score(first: Conversation, second: Conversation) -> float:
    return 0.5 + 0.5 * (first.score - second.score)


def ids(table: pa.Table) -> list[str]:
    return table["id"].to_pylist()


def test_every_two_conversations_on_a_context_are_a_pair():
    talks = [talk(0, 2), talk(0, 0), talk(0, 3), talk(1, 1), talk(2, 1), talk(2, 0), talk(0, 0, iteration=1)]
    found = ids(pairs_of(to_table(talks)))
    assert list(zip(found[::2], found[1::2], strict=True)) == [
        ("0-0-2", "0-0-3"),
        ("0-0-0", "0-0-2"),
        ("0-0-0", "0-0-3"),
        ("0-2-0", "0-2-1"),
    ]
    with pytest.raises(DataError, match="none of 2 conversations has a partner"):
        pairs_of(to_table([talk(0, 1), talk(1, 1)]))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), unique=True, min_size=1), st.randoms())
def test_pairing_does_not_depend_on_the_order_of_what_is_there(present, random):
    talks = [talk(context, sample) for context, sample in present]
    whole = {(c, s, t) for c, s in present for d, t in present if c == d and s < t}
    random.shuffle(talks)
    if not whole:
        with pytest.raises(DataError):
            pairs_of(to_table(talks))
        return
    found = from_table(pairs_of(to_table(talks)))
    pairs = list(zip(found[::2], found[1::2], strict=True))
    assert {(int(a.context_id[1:]), a.sample, b.sample) for a, b in pairs} == whole and len(pairs) == len(whole)
    assert all(a.context_id == b.context_id for a, b in pairs)


def test_pairs_across_have_an_even_sample_first_and_an_odd_one_second():
    table = to_table([talk(0, sample) for sample in (0, 1, 2, 3)])
    found = ids(pairs_of(table, "across"))
    assert list(zip(found[::2], found[1::2], strict=True)) == [
        ("0-0-0", "0-0-1"),
        ("0-0-0", "0-0-3"),
        ("0-0-2", "0-0-1"),
        ("0-0-2", "0-0-3"),
    ]


def test_a_conversation_in_several_pairs_gets_the_mean_of_its_preferences():
    scores = {0: 0.9, 1: 0.4, 2: 0.2}
    table = to_table([talk(0, sample, score) for sample, score in scores.items()])
    pairs, found, numbers, _ = compare(pairs_of(table), by_score, QUIET, RolloutSettings())
    kept, means = mean_values(pairs, found)
    assert ids(kept) == ["0-0-0", "0-0-1", "0-0-2"] and numbers["compared"] == 3
    for sample, mean in enumerate(means):
        others = [0.5 + 0.5 * (scores[sample] - scores[other]) for other in scores if other != sample]
        assert mean == pytest.approx(np.mean(others))
    assert means.dtype == np.float32 and means.mean() == pytest.approx(0.5)


def test_each_gets_its_probability_to_be_preferred():
    table = to_table([talk(0, 0, 0.9), talk(0, 1, 0.4), talk(1, 0, 0.2), talk(1, 1, 0.6)])
    kept, found, numbers, causes = compare(table, by_score, QUIET, RolloutSettings())
    np.testing.assert_allclose(found, [0.75, 0.25, 0.3, 0.7], rtol=1e-6)
    assert found.dtype == np.float32 and ids(kept) == ids(table)
    assert numbers == {"compared": 2.0, "failed": 0.0, "flipped": 0.0, "decided": pytest.approx(0.45)}
    assert not causes


def test_a_pair_that_cannot_be_compared_is_left_out_and_counted():
    asked: list[str] = []

    def prefer(first: Conversation, second: Conversation) -> float:
        asked.append(first.id)
        if first.context_id == "x1":
            raise EngineError("the judge is asleep")
        return 1.5 if first.context_id == "x2" else 1.0

    table = to_table([talk(context, sample) for context in range(3) for sample in range(2)])
    kept, found, numbers, causes = compare(table, prefer, QUIET, ONCE.model_copy(update={"retries": 2}))
    assert ids(kept) == ["0-0-0", "0-0-1"] and found.tolist() == [1.0, 0.0]
    assert numbers["failed"] == 2.0 and asked.count("0-1-0") == 3
    assert "1 x EngineError: the judge is asleep" in causes and "1 x DataError: the preference is 1.5" in causes
    with pytest.raises(DataError, match=r"1 of 1 comparisons .* the first, 0-2-0 and 0-2-1: DataError: .* is 1.5"):
        compare(table.slice(4), prefer, QUIET, ONCE)
    with pytest.raises(EngineError, match=r"2 of 3 comparisons .*, 1 because of the infrastructure; .* is asleep"):
        compare(table, prefer, QUIET, ONCE.model_copy(update={"data_errors": 0.5}))


@pytest.mark.parametrize("error", [ConfigurationError("HTTP status 401"), KeyError("no such verdict")])
def test_a_judge_that_refuses_or_raises_loses_that_pair_alone(error: Exception):
    def prefer(first: Conversation, second: Conversation) -> float:
        if first.context_id == "x1":
            raise error
        return 1.0

    table = to_table([talk(context, sample) for context in range(2) for sample in range(2)])
    kept, _, numbers, causes = compare(table, prefer, QUIET, ONCE)
    assert (
        ids(kept) == ["0-0-0", "0-0-1"]
        and numbers["failed"] == 1.0
        and causes == f"1 x {type(error).__name__}: {error}"
    )
    with pytest.raises(DataError, match=r"1 of 2 comparisons .* because of wrong data; the first, 0-1-0 and 0-1-1: "):
        compare(table, prefer, QUIET, ONCE.model_copy(update={"data_errors": 0.1}))


def test_a_share_of_the_pairs_is_turned_round_whatever_the_order():
    table = to_table([talk(context, sample, 0.9 - 0.8 * sample) for context in range(400) for sample in range(2)])
    _, found, numbers, _ = compare(table, by_score, Noise(0.3, "flipped", seed=1), ONCE)
    turned = found[::2] < 0.5
    np.testing.assert_array_equal(found[::2] + found[1::2], 1.0)
    assert numbers["flipped"] == turned.sum() and 90 < turned.sum() < 150
    _, again, *_ = compare(table.slice(200, 100), by_score, Noise(0.3, "flipped", seed=1), ONCE)
    assert again.tolist() == found[200:300].tolist()
    _, other, *_ = compare(table, by_score, Noise(0.3, "flipped", seed=2), ONCE)
    assert (other != found).any()


def test_an_oracle_has_to_be_there():
    with pytest.raises(ConfigurationError, match="'letters' has no preference oracle"):
        PreferenceSettings().judge(EnvironmentSettings(name="tests.support.letters:Letters"))
    prefer = PreferenceSettings().judge(EnvironmentSettings(name="tests.support.rival_letters:RivalLetters"))
    with pytest.raises(DataError, match="rival_letters"):
        prefer(talk(0, 0), talk(0, 1))


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint()
    yield served
    served.close()


def llm_of(served: Endpoint, **more: str) -> PreferenceSettings:
    return PreferenceSettings(source="llm", llm={"base_url": served.url, "model": "m", "retries": 0}, **more)


def test_an_llm_compares_both_orders_by_the_environments_criterion(endpoint: Endpoint):
    def answer(body: dict[str, Any]) -> tuple[int, str]:
        first = body["messages"][1]["content"].split("Conversation B:")[0]
        return (
            200,
            f"PREFERENCE: {8 if 'gladly' in first else 4}",
        )  # A has an advantage of its own: 8 and 4, not 7 and 3

    endpoint.answer = answer
    lessons = [replace(talk(0, 0), environment="education"), replace(talk(0, 1), environment="education")]
    lessons[0].turns[1].text = "Sure, gladly."
    prefer = llm_of(endpoint).judge(EnvironmentSettings(name="education"))
    for order, wanted in ((lessons, [0.7, 0.3]), (lessons[::-1], [0.3, 0.7])):
        _, found, numbers, _ = compare(to_table(order), prefer, QUIET, ONCE)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        assert numbers["compared"] == 1 and numbers["failed"] == 0
    read = [[message["content"] for message in request["messages"]] for request in endpoint.requests]
    assert len(read) == 4 and all(Education.criterion in system for system, _ in read)
    assert [pair.index("gladly") < pair.index("Conversation B:") for _, pair in read] == [True, False, False, True]


def test_a_criterion_is_the_settings_or_else_the_environments(endpoint: Endpoint):
    endpoint.answer = lambda body: (200, "PREFERENCE: 5")
    for name, more, wanted in (
        ("car_dealer", {}, Environment.criterion),
        ("education", {"criterion": "The shorter is better."}, "The shorter is better."),
    ):
        endpoint.requests.clear()
        assert llm_of(endpoint, **more).judge(EnvironmentSettings(name=name))(talk(0, 0), talk(0, 1)) == 0.5
        assert all(wanted in request["messages"][0]["content"] for request in endpoint.requests)
    with pytest.raises(ConfigurationError, match="it needs a criterion"):
        llm_of(endpoint, criterion=" ").judge(EnvironmentSettings(name="education"))
