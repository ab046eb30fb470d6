"""Checkpoints: there whole or not at all, refused where they are not what was written, the former one kept."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mtrl_ray.errors import CheckpointError
from mtrl_ray.run import checkpoint
from mtrl_ray.run.checkpoint_store import LocalStore
from tests.support.disk import no_file_over


def save(folder: Path) -> None:
    """A model in a folder of its own, as the learner writes one."""
    (folder / "policy").mkdir()
    save_file({"weight": torch.arange(4096.0)}, folder / "policy" / "model.safetensors")


def write(folder: Path, iteration: int, keep: int = 10) -> Path:
    return checkpoint.write(folder, iteration, {"iteration": iteration}, save, keep)


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    return LocalStore(folder).newest()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_is_found_with_its_state(tmp_path):
    assert newest(tmp_path / "nothing yet") is None
    for iteration in (5, 10, 999_999, 1_000_000):
        path = write(tmp_path, iteration)
        assert newest(tmp_path) == (path, {"iteration": iteration})


def test_nothing_but_whole_checkpoints_is_ever_seen(tmp_path):
    write(tmp_path, 1)

    def die(folder: Path) -> None:
        save(folder)
        assert names(tmp_path) == [".000002.scratch", "000001"]
        assert newest(tmp_path)[1] == {"iteration": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path, 2, {}, die, keep=2)
    assert names(tmp_path) == ["000001"]


def test_what_a_killed_process_left_behind_is_no_checkpoint_and_in_nobodys_way(tmp_path):
    write(tmp_path, 1)
    left = tmp_path / ".000002.scratch"
    left.mkdir()
    save(left)
    assert newest(tmp_path)[1] == {"iteration": 1}
    write(tmp_path, 2)
    assert newest(tmp_path)[1] == {"iteration": 2} and names(tmp_path) == ["000001", "000002"]


def test_a_checkpoint_can_be_written_again(tmp_path):
    write(tmp_path, 3)
    checkpoint.write(tmp_path, 3, {"iteration": 3, "again": True}, save, keep=2)
    assert newest(tmp_path)[1]["again"] and names(tmp_path) == ["000003"]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_few_are_kept(tmp_path, keep):
    for iteration in range(1, 6):
        write(tmp_path, iteration, keep)
    assert [int(path.name) for path in checkpoint.listed(tmp_path)] == list(range(6 - keep, 6))


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_its_name_before_an_older_one_goes(
    tmp_path, monkeypatch
):
    write(tmp_path, 1)
    synced: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((str(path.relative_to(tmp_path)), names(tmp_path)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write(tmp_path, 2, keep=1)
    inside = {"", "/manifest.json", "/state.json", "/policy", "/policy/model.safetensors"}
    unnamed, named = [".000002.scratch", "000001"], ["000001", "000002"]
    assert {path for path, there in synced if there == unnamed} == {f".000002.scratch{name}" for name in inside}
    assert synced[-1] == (".", named) and names(tmp_path) == ["000002"]


def truncate(path: Path) -> None:
    file = path / "policy" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def tamper(path: Path) -> None:
    file = path / "policy" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def lose_a_file(path: Path) -> None:
    (path / "policy" / "model.safetensors").unlink()


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def tear_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text((path / "manifest.json").read_text()[:40])


def empty_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{}")


def add_a_file(path: Path) -> None:
    (path / "policy" / "pytorch_model.bin").write_bytes(b"not of the checkpoint")


def add_an_empty_folder(path: Path) -> None:
    (path / "reference").mkdir()


def change_the_state(path: Path) -> None:
    (path / "state.json").write_text(json.dumps({"iteration": 99}))


DAMAGES = {
    truncate: r"policy/model.safetensors is not what was written",
    tamper: r"policy/model.safetensors is not what was written",
    lose_a_file: r"lacks policy/model.safetensors",
    lose_the_manifest: r"no readable manifest.json",
    tear_the_manifest: r"no readable manifest.json",
    empty_the_manifest: r"manifest.json does not list state.json",
    add_a_file: r"has policy/pytorch_model.bin, which manifest.json does not list",
    add_an_empty_folder: r"has reference, which manifest.json does not list",
    change_the_state: r"state.json is not what was written",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_taken(tmp_path, damage):
    intact, damaged = write(tmp_path, 1), write(tmp_path, 2)
    damage(damaged)
    with pytest.raises(CheckpointError, match=rf"000002.*{DAMAGES[damage]}"):
        checkpoint.verify(damaged)
    assert newest(tmp_path) == (intact, {"iteration": 1})
    damage(intact)
    with pytest.raises(CheckpointError, match=rf"no checkpoint in .* can be used: .*{DAMAGES[damage]}"):
        newest(tmp_path)


def save_with_torch(folder: Path) -> None:
    torch.save({"weight": torch.zeros(4096)}, folder / "optimisers.pt")


def save_as_text(folder: Path) -> None:
    (folder / "learner.json").write_text("x" * 20_000)


@pytest.mark.parametrize("saved", [save, save_with_torch, save_as_text], ids=lambda saved: saved.__name__)
def test_a_disk_that_takes_no_more_leaves_the_former_checkpoint(tmp_path, saved):
    write(tmp_path, 1)
    with no_file_over(8192), pytest.raises(CheckpointError, match=r"000002 could not be written: .*free some space"):
        checkpoint.write(tmp_path, 2, {"iteration": 2}, saved, keep=1)
    assert names(tmp_path) == ["000001"] and newest(tmp_path)[1] == {"iteration": 1}
