"""Judges of turns: the users' own record, and an LLM behind a real HTTP server."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrl_envs.llm.turn_judge import LLMJudge, parse_weights, recorded_weights, transcript
from mtrl_envs.llm.user import LLMSettings
from mtrl_ray.dialogue.conversation import TURN_WEIGHTS, Conversation, Role, StopReason, Turn, from_table, to_table
from mtrl_ray.errors import ConfigurationError, DataError, EngineError
from mtrl_ray.feedback.turn_weights import JudgeSettings, judge
from mtrl_ray.settings.tree import RolloutSettings
from tests.envs.test_llm import Endpoint, endpoint  # noqa: F401


def talk(name: str, metrics: dict[str, float], turns: int = 3) -> Conversation:
    said = [Turn(Role.SYSTEM, "Help."), Turn(Role.USER, "My text\nis long.")]
    for number in range(turns):
        said += [Turn(Role.AGENT, f"What about {number}?", tokens=[1]), Turn(Role.USER, f"It is {number}.")]
    return Conversation(name, "test", "train", "x", said, 0.5, StopReason.OUTCOME, metrics=metrics)


def test_recorded_weights_give_half_to_what_brought_something_out():
    gains = {"gain_0": 3.0, "gain_1": 0.0, "gain_2": 1.0}
    assert recorded_weights(talk("a", gains)) == pytest.approx([0.5 / 3 + 0.375, 0.5 / 3, 0.5 / 3 + 0.125])
    assert recorded_weights(talk("a", dict.fromkeys(gains, 0.0))) == pytest.approx([1 / 3] * 3)
    with pytest.raises(DataError, match="has no record of which turn mattered; use a judge whose source is 'llm'"):
        recorded_weights(talk("a", {}))


@given(gains=st.lists(st.floats(0, 50), min_size=1, max_size=6))
def test_recorded_weights_sum_to_one(gains):
    weights = recorded_weights(talk("a", {f"gain_{k}": gain for k, gain in enumerate(gains)}, len(gains)))
    assert sum(weights) == pytest.approx(1.0) and min(weights) >= 0


def test_the_judge_reads_everything_and_its_last_line_counts():
    read = transcript(talk("a", {}))
    assert "Assistant turn 1: What about 0?" in read and "User: My text is long." in read and "Outcome: 0.50" in read
    assert parse_weights("WEIGHTS: 1, 1, 1 was my first idea\nWEIGHTS: 2, 0, 8.5\n", 3) == [2, 0, 8.5]
    for written in (
        "**WEIGHTS:** 2, 0, 8.5",
        "WEIGHTS: [2, 0, 8.5]",
        "**WEIGHTS: 2, 0, 8.5**.",
        "Weights = 2; 0; 8.5",
        "`WEIGHTS: 2/10, 0/10, 8.5/10`",
        '{"WEIGHTS": [2, 0, 8.5]}',
        "WEIGHTS:\n2, 0, 8.5",
        "WEIGHTS: 2 0 8.5",
        "WEIGHTS: 2 0 8.5.\n\n3 turns were judged.",
        "WEIGHTS: 2; 0; 8.5",
    ):
        assert parse_weights(written, 3) == [2, 0, 8.5], written
    for wrong in ("", "2, 0, 8", "WEIGHTS: 1, 2", "WEIGHTS: 1, 2, 11", "WEIGHTS: 1, , 2", "WEIGHTS: a, b, c"):
        with pytest.raises(DataError, match="no 3 numbers from 0 to 10"):
            parse_weights(wrong, 3)


def settings_for(served: Endpoint) -> LLMSettings:
    return LLMSettings.parse("judge", {"base_url": served.url, "model": "m", "retries": 0})


def test_an_llm_judges_over_http(endpoint: Endpoint):  # noqa: F811
    endpoint.answer = lambda body: (200, "The second asked well.\nWEIGHTS: 1, 3, 0")
    assert LLMJudge(settings_for(endpoint)).weights(talk("a", {}), seed=3) == pytest.approx([0.25, 0.75, 0.0])
    asked = endpoint.requests[0]["messages"]
    assert "WEIGHTS:" in asked[0]["content"] and "Assistant turn 3" in asked[1]["content"]
    endpoint.answer = lambda body: (500, {})
    with pytest.raises(EngineError, match=r"the LLM judge's endpoint .* answered with HTTP status 500"):
        LLMJudge(settings_for(endpoint)).weights(talk("a", {}), seed=3)


def test_conversations_that_cannot_be_judged_are_left_out_and_counted(endpoint: Endpoint):  # noqa: F811
    def answer(body):
        return 200, "no idea" if "about 3" in body["messages"][1]["content"] else "WEIGHTS: 1, 3, 0"

    endpoint.answer = answer
    talks = [talk("a", {}), talk("b", {}, turns=4), talk("c", {})]
    llm, twice, once = LLMJudge(settings_for(endpoint)).weights, RolloutSettings(retries=1), RolloutSettings(retries=0)
    table, numbers, causes = judge(to_table(talks), llm, twice)
    assert [one.id for one in from_table(table)] == ["a", "c"] and numbers == {"judged": 2, "unjudged": 1}
    assert causes.startswith("1 x DataError: the LLM judge's answer has no 4 numbers")
    assert table[TURN_WEIGHTS].to_pylist() == [pytest.approx([0.25, 0.75, 0.0])] * 2
    seeds = [request["seed"] for request in endpoint.requests if "about 3" in request["messages"][1]["content"]]
    assert len(seeds) == 2 and seeds[0] != seeds[1], "every try has a seed of its own"
    wrong = r"1 of 3 judgements of turns failed 1 times each because of wrong data; the first, b: DataError: the LLM judge's"
    with pytest.raises(DataError, match=wrong):
        judge(to_table(talks), llm, RolloutSettings(retries=0, data_errors=0.3))
    with pytest.raises(DataError, match="1 of 1 judgements of turns failed"):
        judge(to_table(talks[1:2]), llm, RolloutSettings(retries=0, data_errors=1))
    endpoint.answer = lambda body: (503, {}) if "about 2" in body["messages"][1]["content"] else (200, "WEIGHTS: 1, 3")
    away = (
        "2 of 3 judgements .*, 2 because of the infrastructure; the first of these, .: EngineError: .* HTTP status 503"
    )
    with pytest.raises(EngineError, match=away):
        judge(to_table([talk("d", {}, turns=2), *talks[:2]]), llm, once)


def test_a_judge_that_refuses_or_raises_loses_that_conversation_alone(endpoint: Endpoint):  # noqa: F811
    endpoint.answer = lambda body: (400, {}) if "about 2" in body["messages"][1]["content"] else (200, "WEIGHTS: 1, 3")
    talks, once = [talk("a", {}), talk("b", {}, turns=2)], RolloutSettings(retries=0)
    table, numbers, causes = judge(to_table(talks), LLMJudge(settings_for(endpoint)).weights, once)
    assert [one.id for one in from_table(table)] == ["b"] and numbers == {"judged": 1, "unjudged": 1}
    assert "HTTP status 400" in causes
    few = RolloutSettings(retries=0, data_errors=0.1)
    with pytest.raises(
        DataError, match=r"1 of 2 judgements of turns failed .*the first, a: DataError: .*HTTP status 400"
    ):
        judge(to_table(talks), LLMJudge(settings_for(endpoint)).weights, few)
    table, _, causes = judge(to_table(talks), lambda one, seed: {"b": [0.5, 0.5]}[one.id], once)
    assert [one.id for one in from_table(table)] == ["b"] and causes == "1 x KeyError: 'a'"


def test_judges_have_room_to_think(endpoint: Endpoint):  # noqa: F811
    endpoint.answer = lambda body: (200, "Let me see. " * 500 + "WEIGHTS: 1, 3, 0")
    llm = {"base_url": endpoint.url, "model": "m"}
    assert JudgeSettings(source="llm", llm=llm).weigh()(talk("a", {}), 3) == pytest.approx([0.25, 0.75, 0.0])
    assert endpoint.requests[0]["max_tokens"] == 1024
    JudgeSettings(source="llm", llm=llm | {"max_tokens": 90}).weigh()(talk("a", {}), 3)
    assert endpoint.requests[1]["max_tokens"] == 90


def test_no_conversations_are_judged_to_none():
    table, numbers, causes = judge(to_table([]), recorded_weights, RolloutSettings())
    assert table.num_rows == 0 and table.schema.field(TURN_WEIGHTS).type == pa.list_(pa.float32())
    assert numbers == {"judged": 0, "unjudged": 0} and not causes


def test_settings_that_cannot_work():
    for tree, wrong in (
        ({"source": "llm"}, "needs llm with at least base_url and model"),
        ({"llm": {"base_url": "http://x", "model": "m"}}, "takes no llm settings"),
        ({"source": "llm", "llm": {"model": "m"}}, "judge: llm: base_url is missing"),
    ):
        with pytest.raises((ValueError, ConfigurationError), match=wrong):
            JudgeSettings(**tree)
