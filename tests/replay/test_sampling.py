"""Logged states and samples: drawn as asked, uniformly or by priority."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, from_table
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.replay import sampling
from mtrl_ray.replay.buffer import STATES, ReplayBuffer
from tests.replay.making import batch, conversation, ids, ref

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_logged_states_are_drawn_uniformly_without_replacement(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    conversations = [conversation(f"c{number}", number % 2, turns=number) for number in range(5)]
    buffer.append([ref(conversations)])
    by_id = {one.id: one for one in conversations}
    every = {(one.id, turn) for one in conversations for turn in one.agent_turns}
    table = buffer.states(None, seed=0)
    assert table.schema.equals(STATES)
    assert {(row["conversation_id"], row["turn"]) for row in table.to_pylist()} == every
    assert table.num_rows == len(every) == 10
    for row in table.to_pylist():
        assert row["tokens"] == by_id[row["conversation_id"]].history(row["turn"])
    assert buffer.states(3, seed=1).equals(buffer.states(3, seed=1))
    drawn: Counter[tuple[str, int]] = Counter()
    for seed in range(600):
        drawn.update((row["conversation_id"], row["turn"]) for row in buffer.states(3, seed).to_pylist())
    assert set(drawn) == every
    assert max(abs(count - 180) for count in drawn.values()) < 60  # 5 standard deviations
    newest = buffer.states(None, 0, iterations=1)["conversation_id"].to_pylist()
    assert Counter(newest) == {"c1": 1, "c3": 3}
    assert set(buffer.states(2, 0, ids=["c2"])["conversation_id"].to_pylist()) == {"c2"}
    with pytest.raises(DataError, match="11 logged states were asked of 5 conversations, which have 10"):
        buffer.states(11, seed=0)


def test_states_of_text_without_tokens_are_refused(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    turns = [Turn(Role.USER, "Hello?"), Turn(Role.AGENT, "Hello.")]
    logged = Conversation("logged", "chat", "train", "logged", turns, 1.0, StopReason.LOGGED)
    assert buffer.append([ref([logged])]).added == 1
    with pytest.raises(DataError, match="'logged' first; encode"):
        buffer.states(1, seed=0)


def test_uniform_samples(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    with pytest.raises(DataError, match="holds 0"):
        buffer.sample(1, seed=0)
    buffer.append([ref(batch(0, 10))])
    sample = buffer.sample(10, seed=4)
    assert sorted(ids(sample)) == sorted(one.id for one in batch(0, 10))
    assert ids(sample) != sorted(ids(sample))
    assert sample["weight"].to_pylist() == [1.0] * 10
    assert ids(buffer.sample(4, seed=4)) != ids(buffer.sample(4, seed=5))
    assert {one.id for one in from_table(sample)} == set(ids(sample))
    with pytest.raises(DataError, match="a sample of 11 conversations was asked of a buffer that holds 10"):
        buffer.sample(11, seed=0)
    with pytest.raises(ConfigurationError, match="score_variance"):
        buffer.sample(1, seed=0, prioritised="luck")


def test_samples_follow_the_priorities_and_weights_undo_them(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    buffer.append([ref(batch(0, 4))])
    names = [one.id for one in batch(0, 4)]
    buffer.update_priorities([*names[:3], "gone"], [1.0, 2.0, 5.0, 100.0])
    drawn: Counter[str] = Counter()
    weights = {}
    for seed in range(200):
        sample = buffer.sample(20, seed, "priority", exponent=1.0, correction=1.0)
        drawn.update(ids(sample))
        weights |= dict(zip(ids(sample), sample["weight"].to_pylist(), strict=True))
    expected = np.array([1, 2, 5, 5]) / 13  # the last was never rated: the greatest so far
    frequencies = np.array([drawn[name] for name in names]) / 4000
    np.testing.assert_allclose(frequencies, expected, atol=0.01)
    np.testing.assert_allclose([weights[name] for name in names], [1, 1 / 2, 1 / 5, 1 / 5], rtol=1e-6)
    for wrong in ([0.0], [float("nan")], [1.0, 2.0]):
        with pytest.raises(DataError, match="positive, finite"):
            buffer.update_priorities(names[:1], wrong)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.floats(0, 1), st.integers(0, 9))
@settings(deadline=None)
def test_the_weighted_sample_estimates_the_uniform_mean(priorities: list[float], exponent: float, seed: int) -> None:
    """Strata keep every count within two of its expectation, so that weights of beta = 1 undo the priorities."""
    values = np.array(priorities)
    probabilities = values**exponent / (values**exponent).sum()
    drawn, weights = sampling.proportional(values, 4000, seed, exponent, 1.0)
    counts = np.bincount(drawn, minlength=len(values))
    assert np.abs(counts - 4000 * probabilities).max() <= 2
    np.testing.assert_allclose(weights, (probabilities.min() / probabilities)[drawn], rtol=1e-9)
    assert weights.max() <= 1


def test_contexts_with_varied_outcomes_are_drawn_more_often(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    scores = {"sure": [1.0, 1.0], "open": [0.0, 1.0], "half": [0.5, 0.9]}
    conversations = [
        conversation(f"{context}{number}", score=score, context_id=context)
        for context, values in scores.items()
        for number, score in enumerate(values)
    ]
    buffer.append([ref(conversations)])
    drawn = Counter(name[:-1] for name in ids(buffer.sample(3000, 0, "score_variance", exponent=1.0)))
    variance = {context: np.var(values) + sampling.VARIANCE_FLOOR for context, values in scores.items()}
    for context in scores:
        assert drawn[context] / 3000 == pytest.approx(variance[context] / sum(variance.values()), abs=0.005)
