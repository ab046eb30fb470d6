"""What a buffer is after its process, its checkpoint, its objects or its disk were lost."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from mtrl_ray.dialogue.conversation import from_table, to_table
from mtrl_ray.errors import DataError, EngineError
from mtrl_ray.replay import memory
from mtrl_ray.replay.buffer import CALLS, HELD, Appended, ReplayBuffer
from mtrl_ray.replay.journal import Journal
from tests.replay.making import batch, dropped, ids, ref

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_new_buffer_begins_with_the_newest_of_the_journal(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    for iteration in range(4):
        buffer.append([ref(batch(iteration))])
    again = ReplayBuffer(tmp_path)
    assert again.window(99).equals(buffer.window(99))
    assert again.append([ref(batch(2))]) == Appended(added=0, duplicates=4)
    small = ReplayBuffer(tmp_path, max_conversations=6)
    assert ids(small.window(99)) == ids(buffer.window(99))[-6:]
    assert dropped(small) == {}
    assert small.append([ref(batch(0))]) == Appended(added=0, duplicates=4)


def test_a_resumed_buffer_is_the_one_of_the_checkpoint(tmp_path: Path) -> None:
    undisturbed = ReplayBuffer(tmp_path / "one", max_conversations=10)
    resumed = ReplayBuffer(tmp_path / "two", max_conversations=10)
    for buffer in (undisturbed, resumed):
        for iteration in range(3):
            buffer.append([ref(batch(iteration))])
        buffer.advance(3)
    state = json.loads(json.dumps(resumed.state()))
    resumed.append([ref(batch(3)[:3])])  # after the checkpoint, before the kill
    resumed = ReplayBuffer(tmp_path / "two", max_conversations=10)
    assert resumed.rebuild(state) == 10
    for iteration in (3, 4):
        for buffer in (undisturbed, resumed):
            assert buffer.append([ref(batch(iteration))]) == Appended(added=4, duplicates=0)
            buffer.advance(iteration + 1)
        assert resumed.window(99).equals(undisturbed.window(99))
        assert resumed.states(5, iteration).equals(undisturbed.states(5, iteration))
    one, two = undisturbed.statistics(), resumed.statistics()
    for measured in (one, two):
        del measured["objects"], measured["bytes"]
    assert one == two
    assert Journal(tmp_path / "two").position.rows == 20


def test_what_came_after_the_checkpoint_can_be_recalled(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    buffer.append([ref(batch(0))])
    state = buffer.state()
    buffer.append([ref(batch(1)[:3])])
    resumed = ReplayBuffer(tmp_path)
    resumed.rebuild(state)
    assert resumed.ids(1) == []
    empty = {"id": [], "score": [], "agent_turns": [], "agent_tokens": [], "source": []}
    assert resumed.outcomes(1) == {"counted": [], **empty}
    for _ in range(2):
        assert resumed.recall(1) == [one.id for one in batch(1)[:3]] == resumed.ids(1)
    found = resumed.outcomes(1)
    assert found["score"] == [0.5] * 3
    assert (len(set(found["id"])), sum(found["agent_turns"])) == (3, 6)
    assert resumed.append([ref(batch(1))]) == Appended(added=1, duplicates=3)
    assert from_table(resumed.window(2)) == batch(0) + batch(1)
    assert Journal(tmp_path).position.rows == 8


def test_a_later_checkpoint_does_not_count_what_was_not_recalled_yet(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    buffer.append([ref(batch(0))])
    first = buffer.state()
    for iteration in (1, 2):
        buffer.append([ref(batch(iteration))])
    resumed = ReplayBuffer(tmp_path)
    resumed.rebuild(first)
    resumed.recall(1)
    second = json.loads(json.dumps(resumed.state()))
    again = ReplayBuffer(tmp_path)
    again.rebuild(second)
    assert (len(again.ids(1)), again.ids(2)) == (4, [])
    assert len(again.recall(2)) == 4
    assert again.window(99).equals(buffer.window(99))


def test_a_buffer_that_is_made_after_its_calls_is_the_one_that_was_lost(tmp_path: Path) -> None:
    bounds: dict[str, Any] = {"max_conversations": 10, "max_staleness": 3}
    lost = ReplayBuffer(tmp_path / "one", **bounds, notes=tmp_path / "notes")
    for iteration in range(3):
        lost.append([ref(batch(iteration)[:2])])
    lost.rebuild(lost.state() | {"ids": [one.id for one in batch(0)[:2]], "position": 1, "dropped": {"bytes": 2}})
    lost.recall(1)
    lost.append([ref(batch(1)), ref(batch(0))])
    lost.advance(2)
    for name, begun in ((CALLS, '["advance", 99'), (HELD, '["0000000009-000')):
        with (tmp_path / "notes" / name).open("a") as file:
            file.write(begun)  # it was killed in the middle of it
    made = ReplayBuffer(tmp_path / "one", **bounds, notes=tmp_path / "notes")
    for _ in range(2):
        assert made.window(99).equals(lost.window(99)) and len(ids(made.window(99))) == 8
        assert made.states(5, 0).equals(lost.states(5, 0))
        assert [made.ids(iteration) for iteration in range(3)] == [lost.ids(iteration) for iteration in range(3)]
        one, two = lost.statistics(), made.statistics()
        different = {name for name in one if one[name] != two[name]}
        assert different <= {"bytes", "objects", "duplicates", "restarts"}, different
        assert made.append([ref(batch(1))]) == Appended(added=0, duplicates=4)
        made = ReplayBuffer(tmp_path / "one", **bounds, notes=tmp_path / "notes")  # of one that was made so itself


def test_a_call_that_cannot_be_noted_is_refused(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path / "one", notes=tmp_path / "notes")
    (tmp_path / "notes" / CALLS).unlink()
    (tmp_path / "notes" / CALLS).mkdir()
    with pytest.raises(EngineError, match=r"calls.jsonl could not be written: .*Is a directory"):
        buffer.advance(1)


def test_what_a_file_holds_and_cannot_be_noted_is_read_again(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path / "one", notes=tmp_path / "notes")
    (tmp_path / "notes" / HELD).unlink()
    (tmp_path / "notes" / HELD).mkdir()
    assert buffer.append([ref(batch(0))]) == Appended(added=4, duplicates=0)
    (tmp_path / "notes" / HELD).rmdir()
    assert buffer.append([ref(batch(1))]) == Appended(added=4, duplicates=0)
    made = ReplayBuffer(tmp_path / "one", notes=tmp_path / "notes")
    assert made.window(9).equals(buffer.window(9)) and len(ids(made.window(9))) == 8


def test_an_actor_that_is_killed_answers_as_if_it_were_not(tmp_path: Path) -> None:
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    actor = ray.remote(ReplayBuffer).options(**options).remote(tmp_path / "one", notes=tmp_path / "notes")
    for iteration in range(3):
        assert ray.get(actor.append.remote([ref(batch(iteration))])).added == 4
        ray.get(actor.advance.remote(iteration + 1))
        pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
        before = actor.window.remote(99)
        os.kill(pid, signal.SIGKILL)
        after, again = ray.get([actor.window.remote(99), actor.append.remote([ref(batch(iteration))])], timeout=60)
        assert after.equals(ray.get(before)) and len(ids(after)) == 4 * (iteration + 1)
        assert again == Appended(added=0, duplicates=4)
        known = ray.get(actor.statistics.remote())
        assert known["version"] == known["restarts"] == iteration + 1
        assert ray.get(actor.__ray_call__.remote(lambda _: os.getpid())) != pid
    state = ray.get(actor.state.remote()) | {"events": {}}
    _, held = ray.get([actor.rebuild.remote(state), actor.statistics.remote()])
    assert held["restarts"] == 3, "the buffer went back, what happened did not"
    ray.kill(actor)


def test_what_is_on_its_way_to_an_actor_that_is_killed_is_kept_once(tmp_path: Path) -> None:
    options = {"num_cpus": 0, "max_restarts": 3, "max_task_retries": 3}
    actor = ray.remote(ReplayBuffer).options(**options).remote(tmp_path / "one", notes=tmp_path / "notes")
    pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    ray.get(actor.recall.remote(0))
    tables = [ref([one]) for one in batch(0, size=40)]
    appended = [actor.append.remote([table]) for table in tables]
    ray.wait(appended, num_returns=10, timeout=60)
    os.kill(pid, signal.SIGKILL)
    answers = ray.get(appended, timeout=120)
    assert all(answer.added + answer.duplicates == 1 and not answer.lost for answer in answers)
    expected = sorted(one.id for one in batch(0, size=40))
    assert ray.get(actor.ids.remote(0)) == ids(ray.get(actor.window.remote(1))) == expected
    assert Journal(tmp_path / "one").position.rows == 40
    ray.kill(actor)


def test_ids_of_an_iteration_include_what_memory_dropped(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path, max_conversations=3)
    buffer.append([ref(batch(0))])
    buffer.append([ref(batch(1))])
    assert buffer.ids(0) == [one.id for one in batch(0)]
    empty = {"id": [], "score": [], "agent_turns": [], "agent_tokens": [], "source": []}
    assert buffer.outcomes(0) == {"counted": buffer.ids(0), **empty}
    assert buffer.ids(2) == []


def test_a_checkpoint_of_another_journal_is_refused(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path / "one")
    buffer.append([ref(batch(0))])
    with pytest.raises(DataError, match=r"names 4 conversations that the journal .*two does not have"):
        ReplayBuffer(tmp_path / "two").rebuild(buffer.state())


def test_a_checkpoint_whose_conversations_were_set_aside_names_the_file(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    buffer.append([ref(batch(0))])
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    for _ in range(2):
        with pytest.raises(
            DataError, match=rf"names 4 conversations .* put back whole copies .*{file.name}.quarantined"
        ):
            ReplayBuffer(tmp_path).rebuild(buffer.state())


def test_a_full_disk_takes_nothing_and_the_append_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = ReplayBuffer(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", _full)
        with pytest.raises(EngineError, match="no space is left"):
            buffer.append([ref(batch(0))])
    assert buffer.window(1).num_rows == 0
    assert buffer.append([ref(batch(0))]) == Appended(added=4, duplicates=0)


def _full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


@ray.remote(num_cpus=0)
class Owner:
    """Owns the objects it puts, and takes them along when it dies."""

    def put(self, table: pa.Table) -> list[ray.ObjectRef]:
        return [ray.put(table)]


def _of_a_dead_owner(table: pa.Table) -> ray.ObjectRef:
    owner = Owner.remote()
    [lost] = ray.get(owner.put.remote(table))
    ray.kill(owner)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # the death of an owner takes Ray a second or two to notice
        try:
            ray.get(lost, timeout=5)
        except ray.exceptions.ObjectLostError:
            return lost
        time.sleep(0.1)
    pytest.fail("the object of a killed owner is still there after 30 s")


def test_tables_that_cannot_be_fetched_are_named_and_the_others_taken(tmp_path: Path) -> None:
    @ray.remote(num_cpus=0, max_retries=0)
    def failing() -> pa.Table:
        raise EngineError("the sampler is gone")

    buffer = ReplayBuffer(tmp_path)
    refs = [_of_a_dead_owner(to_table(batch(1))), ref(batch(0)), failing.remote()]
    appended = buffer.append(refs)
    assert appended.added == 4
    assert appended.lost[0].startswith("OwnerDiedError: ")
    assert appended.lost[2] == "EngineError: the sampler is gone"
    assert set(appended.lost) == {0, 2}
    assert [file.first for file in Journal(tmp_path).files()] == [0]
    assert buffer.statistics()["lost"] == 2


def test_a_lost_object_is_read_from_the_journal_again(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    conversations = batch(0)[::-1] + batch(1)[::-1]
    buffer.append([ref(conversations)])
    [segment] = buffer._memory._segments.values()
    segment.ref = _of_a_dead_owner(to_table(conversations))
    assert from_table(buffer.window(2)) == batch(0) + batch(1)
    assert buffer.statistics()["restored"] == 8
    assert from_table(buffer.window(1)) == batch(1)
    assert buffer.statistics()["restored"] == 8


def test_going_back_to_a_checkpoint_reads_nothing_but_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SEGMENT_BYTES", 2000)
    lost = ReplayBuffer(tmp_path / "one", notes=tmp_path / "notes")
    for iteration in range(6):
        lost.append([ref(batch(iteration))])
    state, expected = lost.state(), lost.window(99)
    lost.append([ref(batch(6))])
    read: list[str] = []
    load = Journal.load
    monkeypatch.setattr(Journal, "load", lambda self, file: read.append(file.name) or load(self, file))
    made = ReplayBuffer(tmp_path / "one", notes=tmp_path / "notes")
    for buffer in (lost, made):
        read.clear()
        assert buffer.rebuild(state) == 24
        assert buffer.ids(6) == [] and len(buffer.ids(5)) == 4
        assert buffer.statistics()["bytes"] == pytest.approx(expected.nbytes, rel=0.1)
        assert read == []
        assert from_table(buffer.window(1)) == batch(5)
        assert 0 < len(read) < 6
        assert buffer.window(99).equals(expected)
        assert len(buffer.recall(6)) == 4
        assert from_table(buffer.take([one.id for one in batch(6)])) == batch(6)
        assert buffer.statistics()["restored"] == 0
    read.clear()
    ReplayBuffer(tmp_path / "one")
    assert len(read) == 7, "a run that is resumed checks all of its journal"


def test_a_file_whose_conversations_fill_many_objects_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SEGMENT_BYTES", 2000)
    buffer = ReplayBuffer(tmp_path)
    buffer.append([ref(batch(0, size=40))])
    read: list[str] = []
    load = Journal.load
    buffer.rebuild(buffer.state())
    monkeypatch.setattr(Journal, "load", lambda self, file: read.append(file.name) or load(self, file))
    assert len(ids(buffer.window(1))) == 40
    assert (len(read), buffer.statistics()["objects"] > 3) == (1, True)


def test_what_is_held_and_not_read_yet_falls_out_like_the_rest(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    for iteration in range(5):
        buffer.append([ref(batch(iteration))])
    small = ReplayBuffer(tmp_path, max_conversations=6)
    small.advance(9)
    assert small.append([ref(batch(5, 3))]).added == 3
    assert dropped(small) == {"conversations": 3}
    assert from_table(small.window(99)) == batch(4)[1:] + batch(5, 3)
    held = sum(ray.get(segment.ref).nbytes for segment in small._memory._segments.values())
    assert held == pytest.approx(small.statistics()["bytes"], rel=0.02)


def test_a_file_of_the_journal_that_was_damaged_meanwhile_is_named_at_the_next_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = ReplayBuffer(tmp_path)
    for iteration in range(2):
        buffer.append([ref(batch(iteration))])
    state = buffer.state()
    buffer.rebuild(state)
    for file in tmp_path.glob("*.parquet"):
        file.write_bytes(b"torn")
    monkeypatch.setattr(buffer._journal.folder, "local", False)  # where nothing is renamed
    with pytest.raises(
        EngineError, match=r"8 of 8 conversations .* are neither in the object store nor in the journal"
    ):
        buffer.window(2)
    with pytest.raises(
        DataError, match=r"names 8 conversations that the journal .* does not have; put back whole copies"
    ):
        buffer.rebuild(state)


def test_what_is_lost_everywhere_is_said(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    buffer.append([ref(batch(0))])
    [segment] = buffer._memory._segments.values()
    segment.ref = _of_a_dead_owner(to_table(batch(0)))
    for path in tmp_path.glob("*.parquet"):
        path.write_bytes(b"torn")
    with pytest.raises(
        EngineError, match=r"4 of 4 conversations .* are neither in the object store nor in the journal"
    ):
        buffer.window(1)
    assert buffer.statistics()["journal_problems"] == len(buffer.problems()) == 1


def test_the_actor_hands_on_tables_by_ref_and_survives_its_own_death(tmp_path: Path) -> None:
    @ray.remote(num_cpus=0)
    def learn(table: pa.Table) -> list[str]:
        return ids(table)

    buffer = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(ReplayBuffer).remote(str(tmp_path))
    for iteration in range(2):
        appended = ray.get(buffer.append.remote([ref(batch(iteration)), ref(batch(iteration)[:2])]))
        assert appended == Appended(added=4, duplicates=2)
    expected = [one.id for one in batch(0) + batch(1)]
    assert ray.get(learn.remote(buffer.window.remote(2))) == expected
    before = ray.get(buffer.states.remote(5, 1))
    held = buffer.window.remote(1)
    ray.wait([held])
    ray.kill(buffer, no_restart=False)
    assert ray.get(learn.remote(buffer.window.remote(2))) == expected
    assert ids(ray.get(held)) == expected[4:]
    assert ray.get(buffer.states.remote(5, 1)).equals(before)
    assert ray.get(buffer.append.remote([ref(batch(1))])) == Appended(added=0, duplicates=4)
    with pytest.raises(DataError, match="99 logged states were asked of 8 conversations"):
        ray.get(buffer.states.remote(99, 0))
    ray.kill(buffer)
