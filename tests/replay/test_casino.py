"""The CaSiNo negotiations, imported with the mapping that comes with the project: both sides, scores by their points."""

import os
import re
from pathlib import Path

import pytest

from mtrl_ray.dialogue.conversation import Conversation, Role, from_table, to_table
from mtrl_ray.replay.importing import import_conversations
from mtrl_ray.replay.journal import Journal
from mtrl_ray.replay.mapping import load_mapping
from mtrl_ray.replay.split import split_table

DATA = Path(os.environ.get("MTRL_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(scope="module")
def casino(tmp_path_factory: pytest.TempPathFactory) -> list[Conversation]:
    """The 900 real negotiations, from both sides."""
    source = DATA / "casino_train.json"
    if not source.exists():
        pytest.skip(
            f"the CaSiNo negotiations are not at {source}; set MTRL_DATA to a folder that has casino_train.json"
        )
    journal = Journal(tmp_path_factory.mktemp("casino"))
    report = import_conversations([str(source)], load_mapping("casino"), journal)
    assert (report.records, report.added, report.quarantined) == (900, 1800, 0)
    return from_table(journal.read())


def test_casino_is_read_from_both_sides(casino: list[Conversation]) -> None:
    by_context: dict[str, list[Conversation]] = {}
    for one in casino:
        by_context.setdefault(one.context_id, []).append(one)
    assert len(by_context) == 900
    swapped = {Role.AGENT: Role.USER, Role.USER: Role.AGENT}
    for first, second in by_context.values():
        assert first.split == second.split
        assert first.metrics["points"] == second.metrics["their_points"]
        assert first.context["priorities"] == second.context["their_priorities"]
        assert [turn.text for turn in first.turns[1:]] == [turn.text for turn in second.turns[1:]]
        assert [swapped[turn.role] for turn in first.turns[1:]] == [turn.role for turn in second.turns[1:]]
        assert (
            first.turns[0].text != second.turns[0].text or first.context["priorities"] == second.context["priorities"]
        )
    held = sum(one.split == "test" for one in casino)
    assert 0.07 < held / len(casino) < 0.13


def test_casino_is_what_the_pages_say(casino: list[Conversation]) -> None:
    docs = Path(__file__).parents[2] / "docs"
    turns = sum(len(one.agent_turns) for one in casino) / len(casino)
    assert (
        f"900 dialogues give 1,800 conversations with {turns:.1f}\nagent turns" in (docs / "importing.md").read_text()
    )
    train, test = split_table(to_table(casino), 0.2)
    assert (train.num_rows, test.num_rows) == (1424, 376)
    page = (docs / "results" / "README.md").read_text()
    assert "mtrl fit-q casino --epochs 3 --held-out 0.2" in page
    read = re.search(r"has read ([\d,]+) conversations", page)
    assert read is not None and int(read[1].replace(",", "")) <= train.num_rows


def test_casino_scores_follow_from_the_deals(casino: list[Conversation]) -> None:
    """5, 4 and 3 points per package of high, medium and low priority; 5 for walking away."""
    values = {"High": 5, "Medium": 4, "Low": 3}
    agreed = 0
    for one in casino:
        assert one.score == pytest.approx(one.metrics["points"] / 36)
        assert sum(turn.reward for turn in one.turns) == pytest.approx(one.score)
        lines = [(turn.role, line) for turn in one.turns for line in turn.text.split("\n") if line.startswith("[")]
        last = lines[-1][1]
        if last == "[walk away]":
            assert one.metrics["points"] == 5
            continue
        assert last == "[accept deal]"
        offerer, offer = lines[-2]
        words = offer.strip("[]").replace(",", "").split()
        mine = words[words.index("get") + 1 :] if offerer == Role.AGENT else words[words.index("you") + 2 :]
        packages = {mine[place + 1].capitalize(): int(mine[place]) for place in (0, 2, 4)}
        assert one.metrics["points"] == sum(
            values[rank] * packages[kind] for rank, kind in one.context["priorities"].items()
        )
        agreed += 1
    assert agreed == 2 * 876
