"""Pairs that part ways at one turn, and responses put next to each other."""

import numpy as np
import pyarrow as pa
import pytest

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, from_table, to_table
from mtrl_ray.dialogue.responses import RESPONSES
from mtrl_ray.errors import DataError
from mtrl_ray.feedback.single_turns import cut, matches, part, parting

SPEAKERS = {"s": Role.SYSTEM, "u": Role.USER, "a": Role.AGENT}


def talk(name: str, said: str) -> Conversation:
    """`said`: words such as `u1 a2`: who, and the only token of the turn."""
    turns = [Turn(SPEAKERS[word[0]], word, tokens=[int(word[1:])]) for word in said.split()]
    return Conversation(name, "test", "train", "x", turns, 0.7, StopReason.OUTCOME, {"price": 3.0})


@pytest.mark.parametrize(
    ("first", "second", "place"),
    [
        ("s1 u2 a3 u4", "s1 u2 a5 u6", 2),
        ("s1 u2 a3 u4 a5 u6", "s1 u2 a3 u4 a6", 4),
        ("s1 u2 a3 u4", "s1 u2 a3 u4", None),
        ("s1 u2 a3 u4", "s1 u2 a3 u5 a6", None),
        ("s1 u2 a3 u4", "s1 u2 a3 u4 a5 u6", None),
    ],
    ids=["first turn", "second turn", "alike", "the user differs", "one goes on"],
)
def test_where_two_conversations_part_ways(first, second, place):
    assert parting(talk("a", first), talk("b", second)) == place


def test_a_cut_conversation_ends_with_the_response():
    ended = cut(talk("a", "s1 u2 a3 u4 a5 u6"), 2)
    assert [turn.text for turn in ended.turns] == ["s1", "u2", "a3"]
    assert (ended.stop, ended.score, ended.metrics) == (StopReason.LOGGED, 0.0, {})


PAIRS = to_table(
    [
        talk("a", "s1 u2 a3 u4 a5 u6"),
        talk("b", "s1 u2 a3 u4 a7 u8"),
        talk("c", "s1 u2 a3 u4"),
        talk("d", "s1 u2 a3 u4"),
        talk("e", "s1 u2 a3 u4"),
        talk("f", "s1 u2 a9 u5"),
    ]
)


def test_responses_are_compared_as_they_stand_or_by_the_end():
    judged, read, numbers = part(PAIRS, "reward")
    assert judged.equals(read) and numbers == {"alike": 1.0}
    assert [[turn.text for turn in one.turns][-1] for one in from_table(read)] == ["a5", "a7", "a3", "a9"]
    whole, read_too, _ = part(PAIRS, "value")
    assert read_too.equals(read) and whole["id"].to_pylist() == read["id"].to_pylist() == ["a", "b", "e", "f"]
    assert [len(one.turns) for one in from_table(whole)] == [6, 6, 4, 4]


def test_pairs_that_are_all_alike_are_refused():
    with pytest.raises(DataError, match="none of 1 pairs of conversations parts ways"):
        part(PAIRS.slice(2, 2), "value")


def responses(*rows: tuple[str, int, int, int]) -> pa.Table:
    """(conversation, turn, sample, token) of each."""
    return pa.Table.from_pylist(
        [
            {
                "conversation_id": name,
                "turn": turn,
                "sample": sample,
                "tokens": [token],
                "logprobs": [-0.5],
                "versions": [2],
                "finish": "stop",
                "text": f"r{token}",
            }
            for name, turn, sample, token in rows
        ],
        schema=RESPONSES,
    )


def test_a_response_is_matched_with_the_one_in_its_state():
    ours = responses(("a", 4, 0, 20), ("e", 2, 0, 22), ("a", 4, 1, 21))
    theirs = responses(("e", 2, 0, 32), ("a", 4, 1, 31), ("a", 4, 0, 30))
    pairs = from_table(matches(PAIRS, ours, theirs))
    assert [one.turns[-1].tokens[0] for one in pairs] == [20, 30, 22, 32, 21, 31]
    assert [len(one.turns) for one in pairs] == [5, 5, 3, 3, 5, 5]
    assert len({one.id for one in pairs}) == 6 and pairs[0].turns[-1].versions == [2]
    np.testing.assert_allclose(pairs[0].turns[-1].logprobs, [-0.5])


def test_a_response_without_a_match_is_refused():
    with pytest.raises(DataError, match="the response a/4/1 has no match in its state"):
        matches(PAIRS, responses(("a", 4, 1, 21)), responses(("a", 4, 0, 30)))
