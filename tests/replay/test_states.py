"""Logged states: drawn as asked, uniformly."""

from collections import Counter
from pathlib import Path

import pytest

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn
from mtrl_ray.errors import DataError
from mtrl_ray.replay.buffer import STATES, ReplayBuffer
from tests.replay.making import conversation, ref

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
