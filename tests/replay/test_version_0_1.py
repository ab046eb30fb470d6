"""A journal and a buffer's checkpoint that version 0.1 wrote (its last commit, 9a4a505) still open, and take more."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from mtrl_ray.dialogue.conversation import SCHEMA, from_table, to_table, validate
from mtrl_ray.evaluation.holdout import mean_score
from mtrl_ray.evaluation.logged import parts
from mtrl_ray.replay.buffer import ReplayBuffer
from mtrl_ray.replay.catalogue import Catalogue
from mtrl_ray.replay.journal import Journal
from mtrl_ray.replay.lines import Lines
from tests.replay.making import batch, ids, ref

DATA = Path(__file__).parent / "data"
SALES = [f"sales/train/{n}/expert/0" for n in range(3)]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A copy of the journal: three conversations of sampled tokens, three of texts, two of a later iteration."""
    return Path(shutil.copytree(DATA / "journal_0_1", tmp_path / "journal"))


def test_a_journal_of_version_0_1_is_read_whole(journal: Path) -> None:
    reader = Journal(journal)
    table = reader.read()
    assert reader.problems == [] and table.schema.equals(SCHEMA, check_metadata=True)
    assert ids(table) == [*(one.id for one in batch(0, 3)), *SALES, *(one.id for one in batch(1, 2))]
    read = from_table(table)
    for one in read:
        validate(one)
        assert one.source is None
    assert read[:3] == batch(0, 3) and read[6:] == batch(1, 2)
    assert reader.read(1, ["source", "score"]).to_pylist() == [{"source": None, "score": 0.5}] * 2, (
        "checked, so by column"
    )


def test_it_takes_conversations_of_this_version_beside_its_own(journal: Path) -> None:
    late = batch(2, 2, source="Ann")
    Journal(journal).append(to_table(late))
    table = Journal(journal).read()
    assert table["source"].to_pylist() == [None] * 8 + ["Ann"] * 2
    assert mean_score(table).clusters == 9
    assert parts(table, None, 0.4, seed=1).train.num_rows > 0


@pytest.mark.usefixtures("ray_cluster")
def test_a_checkpoint_of_version_0_1_is_gone_back_to(journal: Path) -> None:
    buffer = ReplayBuffer(journal)
    state = json.loads((DATA / "journal_0_1_state.json").read_text())
    assert buffer.rebuild(state) == 6
    assert ids(buffer.window(1)) == sorted([*(one.id for one in batch(0, 3)), *SALES])
    assert buffer.ids(1) == [] and buffer.recall(1) == [one.id for one in batch(1, 2)]
    buffer.append([ref(batch(2, 2, source="Ann"))])
    assert buffer.outcomes(2)["source"] == ["sales/Ann"] * 2
    assert buffer.outcomes(1)["source"] == [f"sales/train/{one.context_id}" for one in batch(1, 2)]


def test_notes_of_another_version_are_read_again_from_the_files(journal: Path, tmp_path: Path) -> None:
    notes = Lines(tmp_path / "held.jsonl")
    first = Journal(journal).files()[0]
    columns = {"id": ["run/0/0"], "iteration": [0]}
    notes.begin((first.name, 10, columns))
    catalogue = Catalogue(Journal(journal), notes)
    catalogue.refresh()
    assert catalogue.entries().num_rows == 8 and isinstance(catalogue.rows(SALES), pa.Table)
