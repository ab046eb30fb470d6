"""Logged states answered in other ways and continued to the end, on a real Ray."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray

from mtrl_ray.dialogue.chat import chat_format
from mtrl_ray.dialogue.conversation import Finish, iterate
from mtrl_ray.dialogue.responses import RESPONSES
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.evaluation.answer_ranks import REPEATS, measure
from mtrl_ray.evaluation.answers import continue_all
from mtrl_ray.learner.methods.linear_q import Scores
from mtrl_ray.learner.methods.outcome_scores import OutcomeScores
from mtrl_ray.rollout.continuing import Start
from mtrl_ray.rollout.engine import Generation
from mtrl_ray.run import trainer
from mtrl_ray.run.folder import prepare
from mtrl_ray.run.recipes import load
from mtrl_ray.settings.tree import EnvironmentSettings
from mtrl_ray.statistics.ridge import Ridge
from mtrl_ray.system.logged import Logged
from tests.support.letter_scores import LetterScores


@pytest.fixture(scope="module")
def stepping(
    ray_cluster: None, quick: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[trainer.Trainer]:
    """A trainer whose iterations the tests make themselves."""
    settings = load("sales", [*quick, f"run.folder={tmp_path_factory.mktemp('continued')}", "run.name=stepping"])
    prepare(settings, fresh=False, command="mtrl train")
    made = trainer.Trainer(settings)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def logged(stepping: trainer.Trainer) -> Logged:
    """Twelve conversations of `Letters`."""
    return stepping.system.rollout(12, 1)


def starts(logged: Logged, blank_sales: Path, texts: list[str | None]) -> list[Start]:
    """These answers in the last state of every conversation."""
    chat = chat_format(str(blank_sales))
    talks = {talk.id: talk for talk in iterate(ray.get(logged.table))}
    return [
        Start(lease, talk, talk.agent_turns[-1], number, answer)
        for lease in logged.leases
        for talk in [talks[lease.id]]
        for number, text in enumerate(texts)
        for answer in [None if text is None else Generation("", chat.encode_agent(text), [], [], Finish.STOP)]
    ]


def test_outcomes_rank_planted_answers_and_are_no_training_data(stepping, logged, blank_sales):
    system = stepping.system
    before = ray.get(system.buffer.statistics.remote())
    table = system.continued(starts(logged, blank_sales, ["eeee", "x"]), repeats=2)
    assert table["start"].to_pylist() == [start for start in range(24) for _ in range(2)]
    good, bad = np.array(table["score"]).reshape(12, 2, 2).mean(axis=2).T
    assert (good > bad).all(), "eeee is the best answer there is, and nothing comes after the last state"
    after = ray.get(system.buffer.statistics.remote())
    assert after["journaled"] == before["journaled"] and after["conversations"] == before["conversations"]
    assert not set(table["id"].to_pylist()) & set(logged.ids)


def planted(begun: list[Start], texts: list[str]) -> pa.Table:
    """These starts as the responses that workers sample."""
    rows = [
        {
            "conversation_id": start.conversation.id,
            "turn": start.turn,
            "sample": start.number,
            "tokens": start.answer.tokens,
            "logprobs": [-1.0] * len(start.answer.tokens),
            "versions": [0] * len(start.answer.tokens),
            "finish": "stop",
            "text": texts[start.number],
        }
        for start in begun
        if start.answer is not None
    ]
    return pa.Table.from_pylist(rows, schema=RESPONSES)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_ranking_finds_a_scorer_that_is_right_and_one_that_is_wrong(stepping, logged, blank_sales, sign):
    texts = ["x", "eeee", "x", "ee"]
    responses = ray.put(planted(starts(logged, blank_sales, texts), texts))
    measure(stepping.system, logged, responses, answers=24, scorer=LetterScores(sign))
    found = stepping.system.take_metrics()
    assert found["ranking/states"] == 8 == found["ranking/ranked_states"] and found["ranking/answers"] == 24
    assert found["ranking/conversations"] == 24 * REPEATS and found["ranking/seconds"] > 0
    assert found["ranking/rank_correlation"] == pytest.approx(sign)
    assert found["ranking/top_1"] == (sign > 0) and sign * found["ranking/gain"] > 0
    assert found["ranking/best_gain"] == pytest.approx(found["ranking/gain"]) or sign < 0
    assert found["ranking/best_gain"] > 0 and 0 < sign * found["ranking/slope"] <= 1.0 + 1e-6


def test_continued_outcomes_take_the_place_of_q(stepping, logged, blank_sales):
    """Each answer gets the mean of its own continuations; an answer that all others equal gets no advantage."""
    system, texts = stepping.system, ["x", "eeee", "x", "ee"]
    begun = starts(logged, blank_sales, texts)
    alike = [replace(start, answer=begun[0].answer) for start in begun[:4]]
    responses = planted([*alike, *begun[4:]], texts)
    chosen, outcomes = continue_all(system, logged, ray.put(responses), 2)
    assert chosen.num_rows == 11 * 3 and outcomes.num_rows == 11 * 3 * 2
    before = Scores(
        np.zeros(48, dtype=np.float32), np.ones(3, dtype=np.float32), 0.1, Ridge(*np.zeros((3, 1)), 0.0, 1.0)
    )
    given = (logged.window(1), ray.put(responses), chosen, outcomes, before)
    value, _ = system.learn(OutcomeScores(1.0), *given, metrics="continued")
    found = ray.get(value)
    assert found.confidence == 1.0 and found.logged is not before.logged and (found.logged == before.logged).all()
    x, best, again, good = found.responses.reshape(12, 4)[1:].T
    np.testing.assert_array_equal(x, again)
    assert (best > good).all() and (good > x).all()
    rewards = [talk.turns[talk.agent_turns[-1]].reward for talk in iterate(outcomes.drop_columns(["start"]))]
    np.testing.assert_allclose(best, np.reshape(rewards, (11, 3, 2)).mean(axis=2)[:, 1], atol=1e-6)
    assert np.ptp(found.responses[:4]) == 0
    assert system.take_metrics()["continued/missing"] == 0
    lost = outcomes.filter(pc.not_equal(outcomes["start"], 1))  # the best answer in the first of these states
    value, _ = system.learn(OutcomeScores(1.0), *given[:3], lost, before, metrics="continued")
    one = ray.get(value).responses.reshape(12, 4)[1]
    assert one[1] == pytest.approx((2 * x[0] + good[0]) / 3)
    assert system.take_metrics()["continued/missing"] == 1


def test_states_whose_answers_are_alike_have_nothing_to_rank(stepping, logged, blank_sales):
    responses = ray.put(planted(starts(logged, blank_sales, ["ee", "ee"]), ["ee", "ee"]))
    measure(stepping.system, logged, responses, answers=24, scorer=LetterScores())
    assert not [name for name in stepping.system.take_metrics() if name.startswith("ranking/")]


def test_sampled_answers_begin_in_the_same_state(stepping, logged, blank_sales):
    begun = starts(logged, blank_sales, [None])
    first, again, other = (
        list(iterate(stepping.system.continued(begun, 2, "common", stream=stream))) for stream in ("", "", "other")
    )
    assert [talk.turns for talk in first] == [talk.turns for talk in again]
    said = [[talk.turns[begun[row // 2].turn].tokens for row, talk in enumerate(talks)] for talks in (first, other)]
    assert said[0] != said[1] and said[0][::2] != said[0][1::2]
    for row, talk in enumerate(first):
        start = begun[row // 2]
        assert talk.turns[: start.turn] == start.conversation.turns[: start.turn]


def test_no_chance_can_be_drawn_that_users_do_not_have(stepping, logged, blank_sales, monkeypatch):
    system = stepping.system
    silent = {"environment": EnvironmentSettings(name="tests.support.letters:Silent")}
    monkeypatch.setattr(system, "settings", system.settings.model_copy(update=silent))
    with pytest.raises(ConfigurationError, match=r"take chance='logged'"):
        system.continued(starts(logged, blank_sales, [None]))
    assert system.continued(starts(logged, blank_sales, [None])[:1], chance="logged").num_rows == 1


def test_an_iteration_says_how_its_answers_are_and_how_q_ranks_them(stepping):
    metrics = stepping.step()
    assert {"ranking/gain", "ranking/gain_low", "ranking/slope"} <= metrics.keys()
    assert (
        2 <= metrics["ranking/answers"] <= 6
        and metrics["ranking/conversations"] == metrics["ranking/answers"] * REPEATS
    )
    assert 1 <= metrics["respond/distinct"] <= 2 and metrics["respond/answer_tokens_p95"] <= 6
    assert 0 < metrics["collect/answer_tokens"] <= 6
    assert not [name for name in stepping.step() if name.startswith("ranking/")], "not in every iteration"
