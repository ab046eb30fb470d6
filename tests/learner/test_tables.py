import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, from_table, to_table
from mtrl_ray.errors import DataError
from mtrl_ray.learner.rows.tables import Dialogues, Responses, ranges


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6)), max_size=8))
def test_ranges_are_the_concatenated_aranges(pairs: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in pairs], dtype=np.int64)
    lengths = np.array([length for _, length in pairs], dtype=np.int64)
    expected = [start + step for start, length in pairs for step in range(length)]
    assert ranges(starts, lengths).tolist() == expected


def test_dialogues_agree_with_the_conversations(conversations: pa.Table) -> None:
    dialogues = Dialogues.read(conversations)
    loaded = from_table(conversations)
    assert len(dialogues) == len(loaded)
    assert dialogues.tokens.tolist() == [token for one in loaded for token in one.tokens]
    agent = [token for one in loaded for token, own in zip(one.tokens, one.mask, strict=True) if own]
    assert dialogues.tokens[dialogues.agent_tokens].tolist() == agent
    assert dialogues.agent_turn_numbers().tolist() == [turn for one in loaded for turn in one.agent_turns]
    assert dialogues.rewards[dialogues.agent_turns].tolist() == [reward for one in loaded for reward in one.rewards]


def test_slices_and_several_tables_are_read_as_what_they_show(conversations: pa.Table) -> None:
    whole = Dialogues.read(conversations)
    parts = Dialogues.read([conversations.slice(0, 5), conversations.slice(5)])
    tail = Dialogues.read(conversations.slice(7))
    assert np.array_equal(parts.tokens, whole.tokens)
    assert np.array_equal(parts.turn_starts, whole.turn_starts)
    assert tail.tokens.tolist() == whole.tokens[whole.starts[7] :].tolist()
    assert len(Dialogues.read(conversations.slice(0, 0))) == 0


def test_responses_know_their_states(conversations: pa.Table, responses: pa.Table) -> None:
    dialogues = Dialogues.read(conversations)
    found = Responses.read(responses, dialogues)
    by_id = {one.id: one for one in from_table(conversations)}
    rows = responses.to_pylist()
    assert [int(length) for length in found.attach] == [
        len(by_id[row["conversation_id"]].history(row["turn"])) for row in rows
    ]
    states = [(row["conversation_id"], row["turn"]) for row in rows]
    for left, right in zip(range(len(rows)), range(1, len(rows)), strict=False):
        assert (found.state[left] == found.state[right]) == (states[left] == states[right])
    assert len(np.unique(found.state)) == len(set(states))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"conversation_id": "nobody"}, "conversation that was not given"),
        ({"turn": 99}, "turn that its conversation does not have"),
        ({"turn": 0}, "turn that is not the agent's"),
        ({"tokens": [], "logprobs": [], "versions": []}, "has no tokens"),
        ({"logprobs": []}, "another number of log-probabilities"),
    ],
)
def test_responses_that_fit_nothing_are_refused(
    conversations: pa.Table, responses: pa.Table, change: dict[str, object], sentence: str
) -> None:
    rows = responses.to_pylist()
    rows[3] |= change
    with pytest.raises(DataError, match=sentence):
        Responses.read(pa.Table.from_pylist(rows, schema=responses.schema), Dialogues.read(conversations))


def test_agent_tokens_have_the_log_probabilities_and_versions_of_their_sampler(conversations: pa.Table) -> None:
    loaded = from_table(conversations)
    said = [turn for one in loaded for turn in one.turns if turn.role == Role.AGENT]
    logprobs, versions = Dialogues.read(conversations.slice(0, 12)).behaviour
    np.testing.assert_allclose(logprobs, [value for turn in said for value in turn.logprobs], rtol=1e-6)
    assert versions.tolist() == [version for turn in said for version in turn.versions]


def test_what_no_policy_sampled_has_no_behaviour(conversations: pa.Table) -> None:
    typed = list(from_table(conversations))
    turn = typed[2].turns[typed[2].agent_turns[-1]]
    turn.logprobs = []
    sentence = f"'{typed[2].id}' has an agent turn of {len(turn.tokens)} tokens with 0 log-probabilities"
    with pytest.raises(DataError, match=sentence):
        _ = Dialogues.read(to_table(typed)).behaviour
    with pytest.raises(DataError, match="nothing to learn from"):
        _ = Dialogues.read(conversations.slice(0, 0)).behaviour


def test_a_conversation_that_begins_with_the_agent_is_refused() -> None:
    first = Conversation("odd", "e", "train", "x", [Turn(Role.AGENT, "", tokens=[1, 2])], 0.0, StopReason.LOGGED)
    with pytest.raises(DataError, match="'odd' begins with an agent turn"):
        _ = Dialogues.read(to_table([first])).agent_turns


def test_missing_columns_are_named(conversations: pa.Table) -> None:
    with pytest.raises(DataError, match="lacks \\['turns'\\]"):
        Dialogues.read(conversations.drop_columns(["turns"]))
