"""Q's targets against loops over turns, and what Q learns."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from mtrl_ray.dialogue.conversation import Conversation, StopReason, from_table, to_table
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.q import Data, PredictQ, QFit, ScoreResponses
from mtrl_ray.learner.methods.values import calibration_error
from tests.learner.examples import answer, talk


def naive_returns(one: Conversation, discount: float) -> list[float]:
    return [
        sum(discount**step * reward for step, reward in enumerate(one.rewards[place:]))
        for place in range(len(one.rewards))
    ]


def targets_of(learner: Learner, conversations: pa.Table, spec: QFit, responses: pa.Table | None = None) -> np.ndarray:
    return spec.targets(learner.core, Data.read(conversations, responses))


@pytest.fixture
def fitted(learner: Learner) -> Learner:
    """A learner whose Q says something."""
    QFit(epochs=3, minibatch_conversations=4).run(learner.core, talk(seed=9, count=16, prefix="old"))
    return learner


def test_returns_are_predicted_beside_q(fitted: Learner, conversations: pa.Table) -> None:
    table = PredictQ(0.9).run(fitted.core, conversations)[0]
    loaded = from_table(conversations)
    assert table["conversation_id"].to_pylist() == [one.id for one in loaded for _ in one.agent_turns]
    assert table["turn"].to_pylist() == [turn for one in loaded for turn in one.agent_turns]
    expected = [value for one in loaded for value in naive_returns(one, 0.9)]
    np.testing.assert_allclose(table["return"].to_numpy(), expected, rtol=1e-5)
    monte_carlo = targets_of(fitted, conversations, QFit(target="monte_carlo", discount=0.9))
    np.testing.assert_allclose(monte_carlo, expected, rtol=1e-5)


@pytest.mark.parametrize(("target", "weight"), [("sarsa", 0.0), ("td_lambda", 0.8)])
def test_backups_along_logged_pairs(fitted: Learner, conversations: pa.Table, target: str, weight: float) -> None:
    q = iter(PredictQ().run(fitted.core, conversations)[0]["q"].to_pylist())
    expected: list[float] = []
    for one in from_table(conversations):
        values = [next(q) for _ in one.agent_turns]
        following, targets = 0.0, []
        for place in reversed(range(len(values))):
            mixed = 0.0 if place == len(values) - 1 else (1 - weight) * values[place + 1] + weight * following
            following = one.rewards[place] + 0.9 * mixed
            targets.append(following)
        expected += reversed(targets)
    found = targets_of(fitted, conversations, QFit(target=target, td_lambda=0.8, discount=0.9))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_expected_backups_average_over_responses_in_the_next_state(fitted: Learner, conversations: pa.Table) -> None:
    responses = answer(conversations, seed=4, samples=3)
    scores = ScoreResponses().run(fitted.core, conversations, responses)[0]
    values: dict[tuple[str, int], list[float]] = {}
    for row, score in zip(responses.to_pylist(), scores, strict=True):
        values.setdefault((row["conversation_id"], row["turn"]), []).append(float(score))
    expected = []
    for one in from_table(conversations):
        for reward, following in zip(one.rewards, [*one.agent_turns[1:], None], strict=True):
            after = 0.0 if following is None else np.mean(values[one.id, following])
            expected.append(reward + 0.9 * after)
    found = targets_of(fitted, conversations, QFit(target="expected", discount=0.9), responses)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_expected_backups_need_responses(fitted: Learner, conversations: pa.Table) -> None:
    with pytest.raises(ConfigurationError, match="needs responses in the next states"):
        QFit(target="expected").run(fitted.core, conversations)
    with pytest.raises(DataError, match="needs a response on conversation"):
        QFit(target="expected").run(fitted.core, conversations, answer(conversations, seed=4, samples=1, every=3))


def test_a_slow_copy_gives_other_targets(fitted: Learner, conversations: pa.Table) -> None:
    slow = QFit(target="sarsa", target_rate=0.1, epochs=4, minibatch_conversations=4)
    before = targets_of(fitted, conversations, slow)
    slow.run(fitted.core, conversations)
    after = targets_of(fitted, conversations, slow)
    fast = targets_of(fitted, conversations, QFit(target="sarsa"))
    assert not np.allclose(after, before)
    assert np.abs(after - before).mean() < np.abs(fast - before).mean()


def test_q_scores_responses_as_it_scores_turns(fitted: Learner, conversations: pa.Table) -> None:
    loaded = from_table(conversations)
    rows = [
        {"conversation_id": one.id, "turn": turn, "sample": 0, "finish": "stop", "text": ""}
        | {name: getattr(one.turns[turn], name) for name in ("tokens", "logprobs", "versions")}
        for one in loaded
        for turn in one.agent_turns
    ]
    responses = pa.Table.from_pylist(rows, schema=answer(conversations, 0, 1).schema)
    np.testing.assert_allclose(
        ScoreResponses().run(fitted.core, conversations, responses)[0],
        PredictQ().run(fitted.core, conversations)[0]["q"].to_numpy(),
        rtol=1e-4,
        atol=1e-5,
    )


def test_unseen_conversations_are_judged_before_they_are_fitted(learner: Learner) -> None:
    """The last token of a turn tells its reward, so with γ = 0 the return can be known."""
    spec = QFit(discount=0.0, epochs=12, minibatch_conversations=8, learning_rate=3e-3)
    first = spec.run(learner.core, talk(seed=1, count=96))[1]
    assert "r" not in first
    unseen = talk(seed=2, count=32, prefix="new")
    predicted = PredictQ(0.0).run(learner.core, unseen)[0]
    second = spec.run(learner.core, unseen)[1]
    q, returns = predicted["q"].to_numpy(), predicted["return"].to_numpy()
    assert second["r"] == pytest.approx(np.corrcoef(q, returns)[0, 1], abs=1e-4)
    assert second["r"] > 0.8
    assert second["calibration"] == pytest.approx(calibration_error(q, returns), abs=1e-4)
    assert second["evaluated_turns"] == len(q)
    assert "r" not in spec.run(learner.core, unseen)[1], "nothing in there is unseen any more"
    assert max(first["loss"], second["loss"]) < 0.1


def test_the_loss_is_in_units_of_the_targets_variance(learner: Learner, conversations: pa.Table) -> None:
    returns = [value for one in from_table(conversations) for value in naive_returns(one, 0.95)]
    spec = QFit(epochs=1, minibatch_conversations=1000, learning_rate=1e-9)
    assert spec.run(learner.core, conversations)[1]["loss"] == pytest.approx(1.0, rel=1e-4)
    q = PredictQ().run(learner.core, conversations)[0]["q"].to_numpy()
    np.testing.assert_allclose(q, np.mean(returns), rtol=1e-4)


def test_calibration_error() -> None:
    predictions = np.repeat(np.arange(10) / 10, 5)
    assert calibration_error(predictions, predictions) == pytest.approx(0.0)
    assert calibration_error(predictions, predictions + 0.25) == pytest.approx(0.25)
    noisy = predictions + np.tile([-0.2, -0.1, 0.0, 0.1, 0.2], 10)
    assert calibration_error(predictions, noisy) == pytest.approx(0.0, abs=1e-9)


def stopped(conversations: pa.Table, reason: StopReason) -> pa.Table:
    """The same, but every second conversation ended for this reason."""
    talks = from_table(conversations)
    for talked in talks[::2]:
        talked.stop = reason
    return to_table(talks)


@pytest.mark.parametrize(("target", "weight"), [("monte_carlo", 1.0), ("sarsa", 0.0), ("td_lambda", 0.8)])
def test_a_conversation_that_the_context_window_cut_has_not_ended(
    fitted: Learner, conversations: pa.Table, target: str, weight: float
) -> None:
    """Its last pair is worth what Q says, the pairs before it what leads there; all others are as they were."""
    spec, q = (
        QFit(target=target, td_lambda=0.8, discount=0.9),
        PredictQ().run(fitted.core, conversations)[0]["q"].to_pylist(),
    )
    cut = targets_of(fitted, stopped(conversations, StopReason.TOKEN_LIMIT), spec)
    for reason in (StopReason.OUTCOME, StopReason.USER_LEFT, StopReason.TURN_LIMIT, StopReason.LOGGED):
        ended = targets_of(fitted, stopped(conversations, reason), spec)
        np.testing.assert_array_equal(ended, targets_of(fitted, conversations, spec))
    expected: list[float] = []
    for number, one in enumerate(from_table(conversations)):
        start = len(expected)
        if number % 2:
            expected += ended[start : start + len(one.agent_turns)].tolist()
            continue
        values = q[start : start + len(one.agent_turns)]
        targets = [values[-1]]
        for place in reversed(range(len(values) - 1)):
            targets.insert(0, one.rewards[place] + 0.9 * ((1 - weight) * values[place + 1] + weight * targets[0]))
        expected += targets
    np.testing.assert_allclose(cut, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(cut, ended)


def test_returns_of_cut_conversations_are_nobodys_yardstick(learner: Learner, conversations: pa.Table) -> None:
    table = stopped(conversations, StopReason.TOKEN_LIMIT)
    numbers = QFit(epochs=1, minibatch_conversations=4).run(learner.core, table)[1]
    known = [value for one in from_table(table)[1::2] for value in naive_returns(one, 0.95)]
    assert numbers["cut"] == 6 and numbers["return"] == pytest.approx(np.mean(known), rel=1e-5)
    fresh = stopped(talk(seed=7, count=8, prefix="fresh"), StopReason.TOKEN_LIMIT)
    seen = sum(len(one.agent_turns) for one in from_table(fresh)[1::2])
    assert QFit(epochs=1).run(learner.core, fresh)[1]["evaluated_turns"] == seen
    everything = to_table(replace(one, stop=StopReason.TOKEN_LIMIT) for one in from_table(conversations))
    assert "return" not in QFit(epochs=1).run(learner.core, everything)[1]


def test_nothing_to_fit(learner: Learner, conversations: pa.Table) -> None:
    with pytest.raises(DataError, match="nothing to fit Q on"):
        QFit().run(learner.core, conversations.slice(0, 0))
    with pytest.raises(ConfigurationError, match="Q has not been fitted"):
        PredictQ().run(learner.core, conversations)
