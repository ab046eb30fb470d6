"""What was asked of a replay buffer and is not in its journal: with it a buffer whose process was lost is made again as it was.

1. A file of JSON lines, each the name of a method and its arguments, in the order in which they were called. `begin` starts it
   anew with the state that all the others follow.
2. It is for a process that is lost, not for a machine: nothing is synced. A last line that was cut off is left out, for its
   call did not return; its caller repeats it.
"""

import json
from pathlib import Path
from typing import Any

from mtrl_ray.writing import writing


class CallLog:
    """See the module's docstring. Without a `path` nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def begin(self, name: str, *arguments: Any) -> None:
        """Forget everything but this call. Raises EngineError where the file cannot be written; the former one then stays."""
        if self._path is None:
            return
        temporary = self._path.with_name(f"{self._path.name}.writing")
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(_line(name, arguments))
            temporary.replace(self._path)

    def add(self, name: str, *arguments: Any) -> None:
        """One more call. Raises EngineError where the file cannot be written."""
        if self._path is None:
            return
        with writing(self._path), self._path.open("a") as file:
            file.write(_line(name, arguments))

    def read(self) -> list[tuple[str, list[Any]]]:
        """Names and arguments, oldest first; none where there is no file."""
        if self._path is None:
            return []
        try:
            lines = self._path.read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        return [(name, arguments) for name, *arguments in whole]


def _line(name: str, arguments: tuple[Any, ...]) -> str:
    return json.dumps([name, *arguments]) + "\n"
