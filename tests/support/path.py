"""The path of a conversation in docs/architecture.md: files that it counts, files that it names, and files that are called."""

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[2]


def section() -> str:
    """The text about the path."""
    text = (ROOT / "docs/architecture.md").read_text()
    return text.split("## One conversation, from a lease to a gradient")[1].split("\n## ")[0]


def counted() -> list[str]:
    """The files of the numbered list, in order."""
    return re.findall(r"^\d+\. `([\w/]+\.py)`", section(), flags=re.MULTILINE)


def named() -> set[str]:
    """All files that the text names, most of them without their package."""
    found = set()
    for name in re.findall(r"`([\w/]+\.py)`", section()):
        places = [place for place in ("", "mtrl_ray/") if (ROOT / place / name).is_file()]
        assert places, f"docs/architecture.md names {name}, which does not exist"
        found.add(places[0] + name)
    return found


@contextmanager
def watched(until: str = "") -> Iterator[list[str]]:
    """A list that gets the project's files whose functions are called, in order, up to the first call of a function `until`."""
    calls: list[str] = []
    over = threading.Event()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event != "call" or over.is_set():
            return
        if frame.f_code.co_name == until:
            over.set()
            return
        path = Path(frame.f_code.co_filename)
        ours = path.is_relative_to(ROOT / "mtrl_ray") or path.parent == ROOT / "envs/mtrl_envs"  # no environment's own
        name = str(path.relative_to(ROOT)) if ours else ""
        if ours and name not in calls:
            calls.append(name)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
