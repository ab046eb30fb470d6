"""What a mapping can say of logs as they are: senders that differ, outcomes in another file, clipped scores, splits."""

import csv
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, from_table
from mtrl_ray.errors import DataError
from mtrl_ray.replay.importing import Imported, import_conversations
from mtrl_ray.replay.journal import Journal
from mtrl_ray.replay.mapping import Mapping
from mtrl_ray.replay.split import held_out

A, U, S = Role.AGENT, Role.USER, Role.SYSTEM


def talk(*senders: Any, **fields: Any) -> dict[str, Any]:
    """A record with a message per sender; each says its place."""
    messages = [{"role": sender, "content": str(place)} for place, sender in enumerate(senders)]
    return {"id": "1", "messages": messages, "score": 1, **fields}


def read(folder: Path, records: list[Any], **mapping: Any) -> tuple[Imported, list[Conversation]]:
    """What a mapping makes of JSON lines."""
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, records)))
    journal = Journal(folder / "journal")
    given = Mapping.model_validate({"environment": "desk", "id": "id", **mapping})
    return import_conversations(str(folder / "log.jsonl"), given, journal), from_table(journal.read())


@pytest.mark.parametrize(
    ("roles", "record", "expected"),
    [
        ({"first": "user", "others": "agent"}, talk("u-17", "a-3", "u-17", "a-9"), [U, A, U, A]),
        ({"first": "agent", "others": "user"}, talk("a-3", "u-17", "a-3"), [A, U, A]),
        ({"first": "user", "others": "agent", "ignore": ["log"]}, talk("log", 5, 6, "log", 5), [U, A, U]),
        ({"paths": {"agent": "staff", "user": "customer"}}, talk(5, 6, staff=6, customer=5), [U, A]),
        ({"paths": {"agent": "staff[].id"}, "others": "user"}, talk(1, 2, 3, staff=[{"id": 2}, {"id": 3}]), [U, A]),
        ({"paths": {"user": "customer"}, "others": "agent"}, talk("system", 5, 6, customer=5), [S, U, A]),
    ],
)
def test_senders_that_differ_from_record_to_record(
    tmp_path: Path, roles: dict[str, Any], record: Any, expected: list[Role]
) -> None:
    report, [one] = read(tmp_path, [record], roles=roles)
    assert report.quarantined == 0
    assert [turn.role for turn in one.turns] == expected


def test_both_sides_of_senders_that_differ(tmp_path: Path) -> None:
    roles = {"paths": {"agent": "pair[0]", "user": "pair[1]"}}
    points = "points.{agent}"
    records = [talk("p8", "p3", "p8", pair=["p3", "p8"], points={"p3": 1, "p8": 0})]
    _, [one, other] = read(tmp_path, records, roles=roles, participants="both", score={"path": points})
    assert {one.id: one.score, other.id: other.score} == {"desk/1/p3": 1.0, "desk/1/p8": 0.0}
    assert [turn.role for turn in one.turns] == [U, A, U] and [turn.role for turn in other.turns] == [A, U, A]


@pytest.mark.parametrize(
    ("roles", "record", "cause"),
    [
        (
            {"paths": {"agent": "staff"}, "others": "user"},
            talk(1, 2),
            "the path 'staff' (roles.paths.agent) finds nothing",
        ),
        ({"paths": {"agent": "staff", "user": "who"}}, talk(1, 2, staff=1, who=1), "a sender on two sides"),
        ({"paths": {"agent": "staff"}, "first": "user"}, talk(1, 2, staff=1), "a sender on two sides"),
        ({"first": "user"}, talk(1, 2), "unknown role"),
    ],
)
def test_senders_that_nobody_can_tell_are_quarantined(tmp_path: Path, roles: Any, record: Any, cause: str) -> None:
    report, kept = read(tmp_path, [record], roles=roles)
    assert (report.causes, kept) == ({cause: 1}, [])


def outcomes(folder: Path, *rows: tuple[str, str]) -> dict[str, Any]:
    """A file of outcomes beside the log, and the join with it."""
    with (folder / "outcomes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("ticket", "stars"), *rows])
    return {"outcome": {"file": "outcomes.csv", "key": "ticket", "equals": "id"}}


def test_an_outcome_that_lies_in_another_file_is_joined(tmp_path: Path) -> None:
    join = outcomes(tmp_path, ("1", "5"), ("2", "1"), ("4", "3"), ("4", "2"))
    records = [talk("user", "agent", id=number) for number in (1, 2, 3, 4)] + [talk("user", "agent", id=None)]
    score = {"path": "outcome.stars", "minimum": 1, "maximum": 5}
    report, kept = read(tmp_path, records, join=join, score=score)
    assert {one.id: one.score for one in kept} == {"desk/1": 1.0, "desk/2": 0.0}
    missing = "not one record in 'outcomes.csv' (join.outcome)"
    assert report.causes == {missing: 2, "the path 'id' (join.outcome.equals) finds nothing": 1}
    assert [sentence.split(": ")[-1] for sentence in report.sentences[:2]] == ["0 for 3", "2 for 4"]


def test_a_joined_file_has_to_be_there_and_have_the_key(tmp_path: Path) -> None:
    join = outcomes(tmp_path, ("1", "5"))
    join["outcome"]["key"] = "tickt"
    with pytest.raises(DataError, match=r"the path 'tickt' finds nothing in any record of .*outcomes.csv"):
        read(tmp_path, [talk("user", "agent")], join=join)
    join["outcome"]["file"] = "absent.csv"
    with pytest.raises(DataError, match=r"absent\.csv"):
        read(tmp_path, [talk("user", "agent")], join=join)
    taken = {"score": outcomes(tmp_path, ("1", "5"))["outcome"]}
    assert read(tmp_path, [talk("user", "agent")], join=taken)[0].causes == {"it has 'score' already": 1}


def test_every_mapping_of_the_page_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "importing.md").read_text().split("## How a record is converted")[0]
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)]
    mappings = [block for block in blocks if not block.startswith("mtrl ")]
    assert len(mappings) == 5
    for block in mappings:
        Mapping.model_validate({"environment": "page", **yaml.safe_load(block)})
    record = talk("user", "agent", fold="dev", status="solved")
    record["messages"][1]["r"] = "7"
    _, [one] = read(tmp_path, [record], **yaml.safe_load(mappings[-1]))
    assert (one.split, one.score, [turn.reward for turn in one.turns]) == ("test", 1.0, [0.0, 1.0])


def test_scores_are_clipped_where_the_mapping_says_so(tmp_path: Path) -> None:
    records = [talk("user", "agent", id=str(score), score=score) for score in (-3, 1, 2.5, 7)]
    report, kept = read(tmp_path, records, score={"minimum": 0, "maximum": 2})
    assert len(kept) == 1 and report.causes == {"score out of range": 3}
    clipped = {"minimum": 0, "maximum": 2, "clip": True}
    _, kept = read(tmp_path, records, score=clipped)
    assert [one.score for one in sorted(kept, key=lambda one: one.id)] == [0.0, 0.5, 1.0, 1.0]
    by_path = {"path": "min([to_number(score), `2`])", "maximum": 2}
    assert read(tmp_path, [talk("user", "agent", id="text", score="9")], score=by_path)[1][-1].score == 1.0


def test_the_logs_own_split_is_kept_and_its_names_can_be_told(tmp_path: Path) -> None:
    records = [talk("user", "agent", id=str(n), fold=fold) for n, fold in enumerate(["train", "dev", "test"])]
    _, kept = read(tmp_path, records, split="fold == 'train' && 'train' || 'test'")
    assert [one.split for one in kept] == ["train", "test", "test"]


def test_records_of_one_source_are_of_one_split(tmp_path: Path) -> None:
    records = [talk("user", "agent", id=str(n), customer=n // 10) for n in range(200)]
    _, kept = read(tmp_path, records, source="customer", held_out=0.4)
    assert [one.source for one in kept] == [str(n // 10) for n in range(200)]
    assert all((one.split == "test") == held_out(str(one.source), 0.4) for one in kept)
    assert 40 < sum(one.split == "test" for one in kept) < 120


def test_a_reward_too_large_to_be_kept_is_quarantined(tmp_path: Path) -> None:
    records = [talk("user", "agent", id="ok"), talk("user", "agent", id="large")]
    records[1]["messages"][1]["reward"] = 1e39
    report, kept = read(tmp_path, records, message={"reward": "reward"})
    assert [one.id for one in kept] == ["desk/ok"] and report.causes == {"not a number": 1}
    assert Journal(tmp_path / "journal").problems == []


def test_system_messages_in_front_are_one_turn_and_a_later_one_is_a_fault(tmp_path: Path) -> None:
    front = talk("system", "system", "user", "agent", id="front")
    late = talk("user", "agent", "system", "user", "agent", id="late")
    report, [one] = read(tmp_path, [front, late])
    assert one.turns[0] == Turn(S, "0\n1") and one.stop == StopReason.LOGGED
    assert report.causes == {"a system message after the first turn": 1}
    told = {"roles": {"system": [], "ignore": ["system"]}}
    assert [turn.role for turn in read(tmp_path, [late], **told)[1][-1].turns] == [U, A, U, A]


def test_a_score_may_be_a_path_alone(tmp_path: Path) -> None:
    _, [one] = read(tmp_path, [talk("user", "assistant", stars=0.25)], score="stars")
    assert one.score == 0.25
