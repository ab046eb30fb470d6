"""Notes from a process to its successor: a file of JSON lines, each a name and arguments.

It is for a process that is lost, not for a machine: nothing is synced. A last line that was cut off counts as not written.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtrl_ray.processes.writing import writing


class Lines:
    """See the module's docstring. Without a `path` nothing is kept. Raises EngineError if the file cannot be written."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._torn = path, False

    def begin(self, *lines: Sequence[Any]) -> None:
        """Forget everything but these, each a name and its arguments; if that fails the former file stays."""
        if self._path is None:
            return
        temporary = self._path.with_name(f"{self._path.name}.writing")
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text("".join(map(_line, lines)))
            temporary.replace(self._path)

    def add(self, name: str, *arguments: Any) -> None:
        """One more."""
        if self._path is None:
            return
        if self._torn:
            self.read()
        self._torn = True
        with writing(self._path), self._path.open("a") as file:
            file.write(_line((name, *arguments)))
        self._torn = False

    def read(self) -> list[tuple[str, list[Any]]]:
        """Names and arguments, oldest first; none if there is no file. A last line that was cut off is removed."""
        if self._path is None:
            return []
        try:
            lines = self._path.read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):
            self.begin(*whole)
        return [(name, arguments) for name, *arguments in whole]


def _line(line: Sequence[Any]) -> str:
    return json.dumps(line) + "\n"
