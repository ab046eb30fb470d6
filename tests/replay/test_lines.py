"""Notes on a disk that is full, and of a process that was killed while it wrote."""

from pathlib import Path

import pytest

from mtrl_ray.errors import EngineError
from mtrl_ray.replay.lines import Lines


def test_a_line_that_a_full_disk_cut_off_does_not_spoil_what_follows(small_disk: Path) -> None:
    path, filler = small_disk / "notes", small_disk / "filler"
    lines = Lines(path)
    lines.begin(("first", 0))
    filler.write_bytes(bytes(230_000))

    def fill() -> None:
        for number in range(50):
            lines.add("long", number, "x" * 3000)

    with pytest.raises(EngineError, match="notes could not be written"):
        fill()
    assert not path.read_text().endswith("\n")
    filler.unlink()
    lines.add("after", 1)
    written = [(name, arguments[0]) for name, arguments in Lines(path).read()]
    assert written == [("first", 0), *(("long", number) for number in range(len(written) - 2)), ("after", 1)]
    assert len(written) > 2


def test_a_line_that_was_cut_off_is_removed_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    Lines(path).begin(("first", [1, "two"]))
    with path.open("a") as file:
        file.write('["second", 3')
    lines = Lines(path)
    assert lines.read() == [("first", [[1, "two"]])]
    lines.add("third", None)
    assert Lines(path).read() == [("first", [[1, "two"]]), ("third", [None])]


def test_nothing_is_kept_without_a_path() -> None:
    lines = Lines(None)
    lines.begin(("first",))
    lines.add("second")
    assert lines.read() == []
