"""What a run does when its machinery fails: report it, wait, repair it, continue.

- Failures of the infrastructure are repaired: an actor, a node or an object was lost, a disk or an endpoint refuses, a wait
  passed its deadline. Ray's own errors and `EngineError` are such failures, wherever they were raised.
- Everything else is passed on: wrong data, settings or checkpoints would fail again in the same way, and a defect has to be
  seen.
- Before the n-th recovery in a row it waits 0, 1, 2, 4 … `LONGEST_SECONDS` seconds; `progressed` ends a row. After `most` in a
  row it gives up with a sentence that has the last cause. A repair that fails counts as one more failure.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from mtrl_ray.errors import EngineError
from mtrl_ray.processes.failures import SENTENCE, explained

LONGEST_SECONDS = 60.0
"""Longest wait before a recovery."""

T = TypeVar("T")


class Recovery:
    """Counts and spaces the recoveries of one run. `total`: since the run began."""

    def __init__(
        self, most: int, say: Callable[[str], None], total: int = 0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.total = total
        self._most, self._say, self._sleep = most, say, sleep
        self._row = 0

    def carry(self, work: Callable[[], T], repair: Callable[[], object]) -> T:
        """The result of `work`; `repair` is called before each further try. Raises EngineError when it gives up."""
        broken = False
        while True:
            try:
                if broken:
                    repair()
                    broken = False
                return work()
            except Exception as error:
                reason = lost(error)
                if reason is None:
                    raise
                self._space(reason, error)
                broken = True

    def progressed(self) -> None:
        """Note that something was finished: the next failure is the first in a row."""
        self._row = 0

    def _space(self, reason: str, error: Exception) -> None:
        if self._row >= self._most:
            raise EngineError(f"{reason}; given up after {self._row} recoveries in a row") from error
        wait = min(2.0 ** (self._row - 1), LONGEST_SECONDS) if self._row else 0.0
        self._row += 1
        self.total += 1
        later = f", in {wait:.0f} s" if wait else ""
        self._say(f"{reason}; recovery {self._row} of at most {self._most} in a row{later}")
        self._sleep(wait)


def lost(error: BaseException) -> str | None:
    """One sentence if the infrastructure failed; None for any other error."""
    ours = explained(error)
    return " ".join(str(ours).split())[:SENTENCE] if isinstance(ours, EngineError) else None
