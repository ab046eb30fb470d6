"""Numbers about conversations and responses, against tables that were written by hand."""

import pytest

from mtrl_ray.dialogue.conversation import Conversation, Finish, Role, StopReason, Turn, to_table
from mtrl_ray.dialogue.responses import RESPONSES
from mtrl_ray.system.tables import described_conversations, described_responses


def said(tokens: list[int], finish: Finish | None = Finish.STOP) -> Turn:
    return Turn(Role.AGENT, "a", tokens, [-1.0] * len(tokens), [0] * len(tokens), finish)


def responses(*rows: tuple[str, int, list[int], Finish]):
    """(conversation, turn, tokens, finish) each."""
    columns = {
        "conversation_id": [row[0] for row in rows],
        "turn": [row[1] for row in rows],
        "sample": list(range(len(rows))),
        "tokens": [row[2] for row in rows],
        "logprobs": [[-1.0] * len(row[2]) for row in rows],
        "versions": [[0] * len(row[2]) for row in rows],
        "finish": [str(row[3]) for row in rows],
        "text": ["a"] * len(rows),
    }
    return RESPONSES.empty_table().from_pydict(columns, schema=RESPONSES)


def test_answers_are_counted_and_not_what_the_user_says():
    user = Turn(Role.USER, "u", [7] * 50)
    talks = [
        Conversation("a", "e", "train", "x", [user, said([1, 2]), user], 0.5, StopReason.OUTCOME),
        Conversation(
            "b", "e", "train", "y", [user, said([1]), user, said([1] * 9, Finish.LENGTH)], 0.5, StopReason.USER_LEFT
        ),
    ]
    found = described_conversations(to_table(talks))
    assert found["answer_tokens"] == pytest.approx(4.0) and found["answer_tokens_p95"] == pytest.approx(8.3)
    assert found["truncated"] == pytest.approx(1 / 3)
    assert (found["stop_outcome"], found["stop_user_left"], found["stop_turn_limit"]) == (0.5, 0.5, 0.0)
    logged = Conversation("c", "e", "train", "z", [user, said([1], None)], 0.5, StopReason.LOGGED)
    assert described_conversations(to_table([logged]))["truncated"] == 0.0, "a log without reasons"
    silent = Conversation("d", "e", "train", "z", [user], 0.0, StopReason.USER_LEFT)
    assert described_conversations(to_table([silent]))["truncated"] == 0.0


def test_answers_that_differ_are_those_with_other_tokens_in_one_state():
    stop, cut = Finish.STOP, Finish.LENGTH
    table = responses(
        ("a", 1, [1, 2], stop), ("a", 1, [1, 2], stop), ("a", 1, [1, 3], cut),
        ("a", 3, [1, 2], stop), ("a", 3, [1, 2], stop), ("a", 3, [1, 2], stop),
        ("b", 1, [1], stop), ("b", 1, [2], stop), ("b", 1, [3], stop),
    )  # fmt: skip
    found = described_responses(table)
    assert found["distinct"] == pytest.approx(2.0) and found["alike"] == pytest.approx(1 / 3)
    assert found["truncated"] == pytest.approx(1 / 9) and found["answer_tokens"] == pytest.approx(5 / 3)
    alone = described_responses(responses(("a", 1, [1, 2], stop), ("b", 1, [3], stop)))
    assert "distinct" not in alone and "alike" not in alone and alone["answer_tokens"] == 1.5
