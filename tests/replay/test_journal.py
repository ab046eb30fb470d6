"""The journal: whole files, one row per conversation, nothing lost to kills, full disks or foreign files."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from mtrl_ray.dialogue.conversation import SCHEMA, Conversation, Finish, Role, StopReason, Turn, from_table, to_table
from mtrl_ray.errors import ConfigurationError, DataError, EngineError
from mtrl_ray.replay import journal as journal_module
from mtrl_ray.replay import storage
from mtrl_ray.replay.journal import Journal, Position

TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.sampled_from(["<|im_start|>assistant\n", "a\0b", "🙂‍↔️", "\u2028", "</s><|im_end|>", "NULL", '{"a":', "\r\n"]),
)
FLOAT = st.floats(-1e6, 1e6, width=32)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    turns = [Turn(Role.SYSTEM, draw(TEXT), tokens=draw(st.lists(st.integers(0, 2**31 - 1), max_size=5)))]
    for _ in range(draw(st.integers(0, 3))):
        turns.append(Turn(Role.USER, draw(TEXT), tokens=draw(st.lists(st.integers(0, 99), max_size=5))))
        length = draw(st.integers(0, 5))
        turns.append(
            Turn(
                Role.AGENT,
                draw(TEXT),
                tokens=draw(st.lists(st.integers(0, 99), min_size=length, max_size=length)),
                logprobs=draw(st.lists(FLOAT, min_size=length, max_size=length)),
                versions=draw(st.lists(st.integers(0, 9), min_size=length, max_size=length)),
                finish=draw(st.sampled_from([None, *Finish])),
                sent=draw(st.none() | TEXT),
                reward=draw(FLOAT),
            )
        )
    return Conversation(
        id=draw(TEXT),
        environment=draw(TEXT),
        split="train",
        context_id=draw(TEXT),
        turns=turns,
        score=draw(st.floats(0, 1, width=32)),
        stop=draw(st.sampled_from(list(StopReason))),
        metrics={"points": draw(FLOAT)},
        context={draw(TEXT): draw(TEXT)},
        iteration=draw(st.integers(0, 2**31 - 1)),
        seed=draw(st.integers(0, 2**64 - 1)),
    )


def conversation(name: str, iteration: int = 0, text: str = "Yes.") -> Conversation:
    turns = [
        Turn(Role.USER, "Red?", [1, 2]),
        Turn(Role.AGENT, text, [3, 4], [-0.5, -0.25], [iteration] * 2, Finish.STOP),
    ]
    return Conversation(name, "sales", "train", name, turns, 1.0, StopReason.OUTCOME, {}, {}, iteration)


def table(*names: str, iteration: int = 0, text: str = "Yes.") -> pa.Table:
    return to_table([conversation(name, iteration, text) for name in names])


@given(st.lists(conversations(), min_size=1, max_size=5, unique_by=lambda one: one.id))
@settings(max_examples=40, deadline=None)
def test_any_conversation_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, given: list[Conversation]
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    Journal(folder).append(to_table(given))
    reader = Journal(folder)
    assert from_table(reader.read()) == given
    assert reader.read().schema.equals(SCHEMA, check_metadata=True)
    assert reader.problems == []


def test_lone_surrogates_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        table("a", text="\ud800")
    assert Journal(tmp_path).position == Position(0, 0, 0)


@pytest.fixture(params=["path", "file uri", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a journal may lie."""
    if request.param == "s3":
        return request.getfixturevalue("s3_bucket")().format("deep/journal")
    folder = tmp_path / "deep" / "journal"
    return folder.as_uri() if request.param == "file uri" else str(folder)


def test_every_filesystem_gives_back_what_was_appended(place: str) -> None:
    writer, reader = Journal(place), Journal(place)
    assert reader.read().num_rows == 0
    names = [writer.append(table("a", "b")).name, writer.append(table("c", iteration=3)).name]
    assert names == sorted(names)
    assert reader.ids() == ["a", "b", "c"]
    assert reader.ids(3) == ["c"]
    assert [file.first for file in reader.files()] == [0, 3]
    assert reader.position == Position(files=2, rows=3, sequence=2)
    assert sorted(info.base_name for info in writer.folder.files()) == names


def test_an_unknown_uri_is_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match=r"'nowhere://x' is not a place pyarrow can open"):
        Journal("nowhere://x")


def test_names_stay_ordered_and_unique_across_restarts_and_writers(tmp_path: Path) -> None:
    first = [Journal(tmp_path).append(table(str(number))).name for number in range(3)]
    one, two = Journal(tmp_path), Journal(tmp_path)
    both = [one.append(table("x")).name, two.append(table("y")).name]
    assert first == sorted(first)
    assert max(first) < min(both)
    assert len({*first, *both}) == 5
    assert set(Journal(tmp_path).ids()) == {"0", "1", "2", "x", "y"}


def test_columns_and_ranges(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for iteration in range(4):
        journal.append(table(f"it{iteration}", iteration=iteration))
    journal.append(to_table([conversation("old", 1), conversation("new", 9)]))
    read = journal.read(range(1, 3), ["score", "id"])
    assert read.column_names == ["score", "id"]
    assert read["id"].to_pylist() == ["it1", "it2", "old"]
    assert journal.read(9)["id"].to_pylist() == ["new"]
    assert journal.read(5).num_rows == 0
    with pytest.raises(DataError, match="no column \\['reward'\\]"):
        journal.read(columns=["reward"])
    with pytest.raises(DataError, match="step 1"):
        journal.read(range(0, 4, 2))


def test_one_iteration_is_read_from_its_own_files_only(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    names = [journal.append(table(f"it{iteration}", iteration=iteration)).name for iteration in range(3)]
    for name in (names[0], names[2]):
        (tmp_path / name).write_bytes(b"unreadable on purpose")
    assert journal.ids(1) == ["it1"]
    assert journal.problems == []


def test_a_conversation_counts_once_and_the_first_wins(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(table("a", "b", text="first"))
    journal.append(table("b", "c", "b", text="second"))
    read = from_table(journal.read())
    assert [(one.id, one.turns[1].text) for one in read] == [("a", "first"), ("b", "first"), ("c", "second")]
    assert [one.id for one in from_table(journal.rows(["c", "a", "nobody"]))] == ["a", "c"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other schema"])
def test_a_damaged_file_is_set_aside_with_its_cause(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path)
    name = journal.append(table(*"abcdefgh")).name
    journal.append(table("z"))
    path = tmp_path / name
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        path.write_bytes(data[:40] + bytes(byte ^ 0xFF for byte in data[40:48]) + data[48:])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        pq.write_table(pa.table({"id": ["a"]}), path)
    damaged = path.read_bytes()
    reader = Journal(tmp_path)
    assert reader.read()["id"].to_pylist() == ["z"]
    [problem] = reader.problems
    assert name in problem
    assert f"kept as {name}.quarantined" in problem
    assert problem in caplog.text
    assert (tmp_path / f"{name}.quarantined").read_bytes() == damaged
    assert Journal(tmp_path).read()["id"].to_pylist() == ["z"]


def spoilt(column: str) -> pa.Table:
    """Two conversations with a value that none may have, in a table that Parquet takes."""
    whole = table("a", "b")
    if column == "score":
        values = pa.array([0.5, float("nan")], pa.float32())
    else:
        offsets = pa.array([0, 1, 3], pa.int32()).buffers()[1]
        values = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"a\xff\xfe"))
    return whole.set_column(SCHEMA.get_field_index(column), SCHEMA.field(column), values)


@pytest.mark.parametrize(
    ("column", "cause"), [("score", "1 of its 2 rows are not valid, the first: .*'b'.*score"), ("id", "UTF8")]
)
@pytest.mark.parametrize("columns", [["id"], None])
def test_a_readable_file_without_conversations_is_set_aside(
    tmp_path: Path, column: str, cause: str, columns: list[str] | None
) -> None:
    journal = Journal(tmp_path)
    name = journal.append(spoilt(column)).name
    journal.append(table("z"))
    assert journal.read(columns=columns)["id"].to_pylist() == ["z"]
    [problem] = journal.problems
    assert re.search(rf"{name} is not a readable file of conversations \(.*{cause}.*\); it is kept as", problem), (
        problem
    )
    assert journal.set_aside == Journal(tmp_path).set_aside == [f"{name}.quarantined"]


def test_a_damaged_remote_file_is_skipped_and_left(caplog: pytest.LogCaptureFixture) -> None:
    mock = fs._MockFileSystem()
    journal = Journal("journal", mock)
    name = journal.append(table("a")).name
    journal.append(table("b"))
    with mock.open_output_stream(f"journal/{name}") as stream:
        stream.write(b"torn")
    assert journal.ids() == ["b"]
    assert journal.problems[0].endswith("it is skipped") and journal.set_aside == [name]
    assert len(journal.folder.files()) == 2


def test_somebody_elses_files_are_reported_and_not_touched(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(table("a"))
    (tmp_path / "notes.parquet").write_bytes(b"mine")
    (tmp_path / ".hidden").write_bytes(b"")
    (tmp_path / "_quarantine-1.jsonl").write_bytes(b"")
    assert journal.ids() == ["a"]
    assert [problem for problem in journal.problems if "notes.parquet" in problem] == journal.problems
    assert (tmp_path / "notes.parquet").read_bytes() == b"mine"


def test_a_filesystem_that_fails_is_not_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    name = journal.append(table("a")).name

    class Failing:
        def open_input_file(self, path: str) -> None:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(journal.folder, "filesystem", Failing())
    monkeypatch.setattr(journal, "files", lambda: [journal_module.JournalFile.parse(name)])
    with pytest.raises(EngineError, match=f"{name} cannot be read: .*Input/output error"):
        journal.read()
    assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (SCHEMA.empty_table(), "at least one"),
        (pa.table({"id": ["a"]}), "this one lacks"),
        (table("a").set_column(9, "score", pa.array(["high"])), "another type"),
        (table("a").set_column(1, "iteration", pa.array([-1], pa.int32())), "iteration -1"),
        (table("a").set_column(0, pa.field("id", pa.string()), pa.array([None], pa.string())), "another type|Parquet"),
    ],
)
def test_what_is_not_conversations_is_refused(tmp_path: Path, given: pa.Table, sentence: str) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(DataError, match=sentence):
        journal.append(given)
    assert journal.folder.files() == []


WRITER = """
import sys
from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, to_table
from mtrl_ray.replay.journal import Journal

journal = Journal(sys.argv[1])
for number in range(100_000):
    name = f"{sys.argv[2]}-{number}"
    turn = Turn(Role.AGENT, name * 200, list(range(500)), [-1.0] * 500, [0] * 500)
    journal.append(to_table([Conversation(name, "e", "train", "c", [turn], 1.0, StopReason.OUTCOME, iteration=number)]))
    sys.stdout.write(f"{name}\\n")
    sys.stdout.flush()
"""


def test_a_writer_killed_at_any_moment_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    acknowledged = []
    for attempt in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path), f"run{attempt}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            acknowledged.append(writer.stdout.readline().strip())
            time.sleep(0.11 + 0.037 * attempt)
            writer.send_signal(signal.SIGKILL)
            acknowledged += writer.stdout.read().split()
    reader = Journal(tmp_path)
    kept = reader.ids()
    assert len(acknowledged) > 3
    assert set(acknowledged) <= set(kept)
    assert len(kept) <= len(acknowledged) + 3  # at most the one in flight, written but not acknowledged
    assert len(kept) == len(set(kept)) == reader.read().num_rows
    assert reader.problems == []


def test_what_a_dead_writer_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    Journal(tmp_path).append(table("a"))
    old, fresh = tmp_path / ".x.parquet.writing", tmp_path / ".y.parquet.writing"
    for path in (old, fresh):
        path.write_bytes(b"half")
    then = time.time() - storage.ABANDONED_SECONDS - 60
    os.utime(old, (then, then))
    journal = Journal(tmp_path)
    assert journal.ids() == ["a"]
    journal.append(table("b"))
    assert not old.exists()
    assert fresh.exists()


def test_a_really_full_disk(small_disk: Path) -> None:
    journal = Journal(small_disk / "journal")
    noise = np.random.default_rng(0)
    kept: list[str] = []

    def fill() -> None:
        for number in range(100):
            journal.append(table(str(number), text=noise.bytes(16_000).hex()))
            kept.append(str(number))

    with pytest.raises(EngineError, match=r"journal/.* could not be written: no space is left there; free space"):
        fill()
    assert len(kept) > 2
    assert Journal(small_disk / "journal").ids() == kept
    assert not list((small_disk / "journal").glob(".*"))
    (small_disk / "journal" / journal.folder.files()[0].base_name).unlink()
    journal.append(table("after", text=noise.bytes(4_000).hex()))
    assert Journal(small_disk / "journal").ids()[-1] == "after"


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.append(table("a"))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(EngineError, match="no space is left there"):
            journal.append(table("b"))
    assert len(list(tmp_path.iterdir())) == 1
    journal.append(table("b"))
    assert journal.ids() == ["a", "b"]


def test_a_reader_is_not_disturbed_by_another_that_sets_a_file_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = Journal(tmp_path), Journal(tmp_path)
    names = [writer.append(table(name)).name for name in "abcd"]
    (tmp_path / names[2]).write_bytes(b"torn")
    load, seen = reader._load, []

    def read_in_between(file: journal_module.JournalFile, columns: list[str]) -> pa.Table | None:
        if not seen:
            seen.append(writer.ids())
        return load(file, columns)

    monkeypatch.setattr(reader, "_load", read_in_between)
    assert reader.ids() == list("abd") and seen == [list("abd")]
    assert reader.problems == [] and reader.set_aside == [f"{names[2]}.quarantined"]
