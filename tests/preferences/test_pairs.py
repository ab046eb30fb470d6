"""Pairs that people compared: every way to write them, and one sentence per mistake."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrl_envs import measure
from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import Role, StopReason, to_table, validate
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.feedback.pairs import load_pairs, read_pairs
from mtrl_ray.replay.journal import Journal


def talk(*texts: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)], **more}


GOOD, BAD = talk("Hi.", "How can I help you?", "Thanks."), talk("Hi.", "What?")
PAIR = {"first": GOOD, "second": BAD, "preference": "first"}


def lines(folder: Path, *records: Any) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in records))
    return str(path)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    kept = Journal(tmp_path / "journal")
    for agent in ("expert", "greedy"):
        kept.append(to_table(measure.conversations(make("education"), agent, 3)))
    return kept


def test_whole_conversations(tmp_path):
    many = [{**PAIR, "judge": "anna"}, {**PAIR, "preference": 0.25}, {**PAIR, "preference": "tie", "context_id": "x7"}]
    pairs = read_pairs(lines(tmp_path, *many))
    assert [pair.preference for pair in pairs] == [1.0, 0.25, 0.5]
    assert [pair.judge for pair in pairs] == ["anna", "", ""]
    first, second = pairs[0].first, pairs[0].second
    assert [turn.role for turn in first.turns] == [Role.USER, Role.AGENT, Role.USER]
    assert first.turns[1].text == "How can I help you?" and first.stop == StopReason.LOGGED
    assert first.id != second.id and first.id == pairs[1].first.id, "the content is the identity"
    assert first.context_id == second.context_id != pairs[1].first.context_id
    assert pairs[2].first.context_id == pairs[2].second.context_id == "x7"
    for pair in pairs:
        validate(pair.first)


def test_conversations_of_a_journal_by_their_ids(tmp_path, journal):
    ids = journal.ids()
    path = tmp_path / "pairs.parquet"
    told = {"first": [ids[0], ids[4]], "second": [ids[3], ids[1]], "preference": [1.0, 0.0], "judge": ["anna", None]}
    pq.write_table(pa.table(told), path)
    pairs = read_pairs(str(path), journal)
    assert [(pair.first.id, pair.second.id) for pair in pairs] == [(ids[0], ids[3]), (ids[4], ids[1])]
    assert pairs[0].first.context["topic"] == pairs[0].second.context["topic"]
    assert [(pair.preference, pair.judge) for pair in pairs] == [(1.0, "anna"), (0.0, "")]
    csv = tmp_path / "pairs.csv"
    csv.write_text(f"first,second,preference\n{ids[0]},{ids[3]},0.75\n")
    assert read_pairs(str(csv), journal)[0].preference == 0.75


def test_whole_conversations_in_parquet(tmp_path):
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist([{**PAIR, "environment": None}, {**PAIR, "environment": "chat"}]), path)
    pairs = read_pairs(str(path))
    assert [pair.first.environment for pair in pairs] == ["pairs", "chat"]
    assert pairs[1].second.turns[1].text == "What?"


MISTAKES = [
    ("{not json", "line 1: not JSON"),
    ([1, 2], "line 1: a record has to be an object, this is list"),
    ({"first": GOOD, "second": BAD}, "preference is missing; a pair has first, second, preference and may have"),
    ({**PAIR, "first": None}, "first is missing"),
    ({**PAIR, "preferance": 1}, "'preferance' is no key of a pair"),
    ({**PAIR, "preference": 1.5}, "preference is 1.5; it has to be a number from 0 to 1, or one of first, second, tie"),
    ({**PAIR, "preference": "NaN"}, "preference is 'NaN'"),
    ({**PAIR, "preference": True}, "preference is True"),
    ({**PAIR, "preference": [1]}, r"preference is \[1\]"),
    ({**PAIR, "second": "x/1"}, "second: the conversation 'x/1' is named by its id, which needs a journal"),
    ({**PAIR, "second": 7}, "second is int; it has to be a conversation's id, or an object with messages"),
    ({**PAIR, "second": {}}, "second: the path 'messages' .messages. finds nothing"),
    ({**PAIR, "second": talk("Hi.")}, "second: no agent turn"),
    (
        {**PAIR, "second": {"messages": [{"role": "king", "content": "?"}]}},
        "second: unknown role: message 0 has 'king'",
    ),
    ({**PAIR, "second": GOOD}, "first and second are the same conversation"),
    (
        {**PAIR, "first": {**GOOD, "context_id": "a"}},
        "first is on context 'a', second on .*only conversations on the same",
    ),
    ({**PAIR, "first": {**GOOD, "score": 3}}, "first: score out of range"),
]


@pytest.mark.parametrize(("record", "sentence"), MISTAKES)
def test_a_mistake_is_one_sentence_that_says_where(tmp_path, record, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        read_pairs(lines(tmp_path, record))
    assert "pairs.jsonl line 1: " in str(caught.value) and "\n" not in str(caught.value)


def test_valid_pairs_are_returned_beside_the_mistakes(tmp_path, journal):
    ids = journal.ids()
    wrong = [{"first": ids[0], "second": other, "preference": 1} for other in ("gone", ids[1])]
    path = lines(tmp_path, *wrong, PAIR, {"first": ids[0], "second": GOOD, "preference": 0})
    found = load_pairs(path, journal)
    assert len(found.pairs) == 1
    assert [sentence.split(":")[0].split()[-1] for sentence in found.mistakes] == ["1", "2", "4"]
    assert "'gone' is not in the journal" in found.mistakes[0]
    assert "first is on context 'test-0', second on 'test-1'" in found.mistakes[1]
    assert "first is of environment 'education', second of 'pairs'" in found.mistakes[2]
    with pytest.raises(DataError, match=r"'gone'.*\(and 2 more mistakes in this file\)"):
        read_pairs(path, journal)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="holds no pairs"):
        read_pairs(lines(tmp_path))
    with pytest.raises(DataError, match="cannot be read"):
        read_pairs(str(tmp_path / "missing.jsonl"))
    with pytest.raises(ConfigurationError, match=r"has none of the endings .*parquet"):
        read_pairs(str(tmp_path / "pairs.txt"))
