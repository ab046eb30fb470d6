"""Checkpoints on other filesystems: whole or not at all, verified where they are read, the former one kept."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs
from ray.exceptions import RayTaskError
from safetensors.torch import load_file, save_file

from mtrl_ray.errors import CheckpointError, ConfigurationError, EngineError
from mtrl_ray.replay.storage import locate
from mtrl_ray.run import checkpoint
from mtrl_ray.run.checkpoint_store import LocalStore, RemoteStore, store_of
from mtrl_ray.run.folder import prepare
from mtrl_ray.run.recipes import load

URI = "far://bucket"


def save(folder: Path) -> None:
    (folder / "policy").mkdir()
    save_file({"weight": torch.arange(4096.0)}, folder / "policy" / "model.safetensors")


@pytest.fixture(params=["s3", "subtree"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RemoteStore:
    """An empty store on a filesystem that is not this machine's disk."""
    if request.param == "s3":
        filesystem, bucket = locate(request.getfixturevalue("s3_bucket")().format(""))
    else:
        bucket = "bucket"
        (tmp_path / "far").mkdir()
        filesystem = fs.SubTreeFileSystem(str(tmp_path / "far"), fs.LocalFileSystem())
    return RemoteStore(filesystem, f"{bucket.rstrip('/')}/runs/first", tmp_path / "run" / ".checkpoint", URI)


def write(store: RemoteStore, number: int, keep: int = 5, **state: Any) -> None:
    store.write(number, {"iteration": number} | state, save, keep)


def files(store: RemoteStore) -> list[str]:
    infos = store._filesystem.get_file_info(fs.FileSelector(store._path, allow_not_found=True, recursive=True))
    return sorted(info.path.removeprefix(f"{store._path}/") for info in infos if info.type == fs.FileType.File)


def overwrite(store: RemoteStore, path: str, content: bytes) -> None:
    with store._filesystem.open_output_stream(f"{store._path}/{path}") as stream:
        stream.write(content)


def read(store: RemoteStore, path: str) -> bytes:
    with store._filesystem.open_input_file(f"{store._path}/{path}") as stream:
        return stream.read()


def test_what_was_written_is_read(store):
    assert store.newest() is None and store.numbers() == []
    write(store, 3)
    write(store, 12)
    folder, state = store.newest()
    assert store.numbers() == [3, 12] and state == {"iteration": 12}
    assert torch.equal(load_file(folder / "policy" / "model.safetensors")["weight"], torch.arange(4096.0))
    write(store, 12, again=True)
    assert store.newest()[1]["again"]


def test_the_last_few_are_kept_and_nothing_else_is_left(store, tmp_path):
    for number in range(1, 6):
        write(store, number, keep=2)
    assert store.numbers() == [4, 5]
    names = ("manifest.json", "policy/model.safetensors", "state.json")
    assert files(store) == [f"{number:06d}/{name}" for number in (4, 5) for name in names]
    assert not (tmp_path / "run" / ".checkpoint").exists()
    store.clear()
    assert store.numbers() == [] and files(store) == []


MODEL, MANIFEST = "000002/policy/model.safetensors", "000002/manifest.json"
DAMAGES = {
    "torn": (MODEL, lambda content: content[:-100], "is not what was written"),
    "altered": (MODEL, lambda content: content[:-1] + bytes([content[-1] ^ 1]), "is not what was written"),
    "manifest torn": (MANIFEST, lambda content: content[:40], "no readable manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_refused_and_the_one_before_is_taken(store, damage):
    write(store, 1)
    write(store, 2)
    path, change, said = DAMAGES[damage]
    overwrite(store, path, change(read(store, path)))
    with pytest.raises(CheckpointError, match=said):
        store.fetch(2)
    assert store.newest()[1] == {"iteration": 1}
    overwrite(store, path.replace("000002", "000001"), b"{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint in far://bucket .* can be used"):
        store.newest()


def test_an_intact_checkpoint_that_cannot_be_used_is_skipped(store, caplog):
    for number in (1, 2, 3):
        write(store, number)
    used = []

    def use(folder: Path, state: dict[str, Any]) -> None:
        if state["iteration"] > 1:
            told = CheckpointError(f"the optimisers in {folder.name} cannot be read")
            raise RayTaskError("load", "Traceback", told) if state["iteration"] == 3 else told
        used.append(state["iteration"])

    assert store.restore(use) and used == [1]
    assert [record.message for record in caplog.records] == [
        f"the optimisers in {number:06d} cannot be read; trying the one before" for number in (3, 2)
    ]
    store._remove(1)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in far://bucket .* can be used: the optimisers in 000003"
    ):
        store.restore(use)
    with pytest.raises(EngineError, match="gone"):
        store.restore(lambda *_: (_ for _ in ()).throw(EngineError("the learner is gone")))
    store.clear()
    assert store.restore(use) is False and used == [1]


def test_an_upload_that_was_cut_off_is_no_checkpoint(store):
    write(store, 1)
    write(store, 2)
    store._filesystem.delete_file(f"{store._path}/{MANIFEST}")
    assert store.newest()[1] == {"iteration": 1}
    write(store, 2)
    assert store.newest()[1] == {"iteration": 2}


class Failing(fs.FileSystemHandler):
    """Cannot be reached."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("get_type_name", "normalize_path", "__class__"):
            return object.__getattribute__(self, name)
        raise OSError("no route to host")

    def get_type_name(self) -> str:
        return "failing"

    def normalize_path(self, path: str) -> str:
        return path


for _name in fs.FileSystemHandler.__abstractmethods__ - {"get_type_name", "normalize_path"}:
    setattr(Failing, _name, lambda self, *arguments, **named: None)
Failing.__abstractmethods__ = frozenset()


def test_a_filesystem_that_does_not_answer_is_no_reason_for_an_older_checkpoint(tmp_path):
    store = RemoteStore(fs.PyFileSystem(Failing()), "runs/first", tmp_path / ".checkpoint", URI)
    with pytest.raises(EngineError, match=r"far://bucket .* cannot be listed: .*no route to host"):
        store.newest()
    with pytest.raises(CheckpointError, match=r"000001 could not be written: .*no route to host; the one before stays"):
        write(store, 1)
    assert not (tmp_path / ".checkpoint").exists()


def test_on_a_disk_that_is_mounted_a_checkpoint_is_synced_before_an_older_one_goes(tmp_path, monkeypatch):
    store = RemoteStore(fs.LocalFileSystem(), str(tmp_path / "far"), tmp_path / "scratch", URI)
    write(store, 1)
    synced: list[tuple[str, list[int]]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), store.numbers()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write(store, 2, keep=1)
    there = {path.removeprefix(f"{tmp_path}/far") for path, numbers in synced if numbers == [1, 2]}
    names = {"", "/000002", "/000002/.manifest.json.writing", "/000002/policy", "/000002/policy/model.safetensors"}
    assert there - {"/000002/state.json"} == names and store.numbers() == [2]


def test_the_setting_says_where(tmp_path, s3_bucket):
    given = ["run.name=first", f"run.folder={tmp_path}"]
    assert str(store_of(load("sales", given))) == str(tmp_path / "first" / "checkpoints")
    far = tmp_path / "far"
    for place in (f"file://{far}", str(far)):
        store = store_of(load("sales", [*given, f"run.checkpoints={place}"]))
        store.write(7, {"iteration": 7}, save, keep=1)
        assert checkpoint.read(far / "first" / "000007")[1] == {"iteration": 7}
        assert store.newest()[1] == {"iteration": 7} and isinstance(store, RemoteStore)
    store = store_of(load("sales", [*given, f"run.checkpoints={s3_bucket().format('runs')}"]))
    store.write(8, {"iteration": 8}, save, keep=1)
    assert store.newest()[1] == {"iteration": 8} and store.numbers() == [8]
    assert isinstance(store_of(load("sales", given)), LocalStore)
    with pytest.raises(ConfigurationError, match=r"run.checkpoints is 'far': .*URI .* or an absolute path"):
        load("sales", ["run.checkpoints=far"])
    with pytest.raises(ConfigurationError, match=r"not a place pyarrow can open"):
        store_of(load("sales", ["run.checkpoints=gopher://far"]))


def test_a_run_whose_checkpoints_are_elsewhere_is_not_begun_over_them_unawares(tmp_path):
    settings = load("sales", ["run.name=first", f"run.folder={tmp_path}", f"run.checkpoints={tmp_path / 'far'}"])
    store_of(settings).write(2, {"iteration": 2}, save, keep=1)
    with pytest.raises(ConfigurationError, match="exists; resume it"):
        prepare(settings, fresh=False, command="mtrl")
    prepare(settings, fresh=True, command="mtrl --fresh")
    assert store_of(settings).numbers() == []
    assert json.dumps(sorted(path.name for path in settings.run_folder.iterdir())) == '["command.txt", "config.yaml"]'
