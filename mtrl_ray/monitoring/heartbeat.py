"""Lines at intervals: what goes on while nothing else is said, so that a long phase is told from one that hangs.

The first line comes after `FIRST_SECONDS` of silence, each later one after twice the time, at most `LONGEST_SECONDS`.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST_SECONDS, LONGEST_SECONDS = 10.0, 60.0
TICK_SECONDS = 1.0


class Heartbeat:
    """A context manager: `activity` gives the line, an empty one is not said; `spoke` starts a new silence."""

    def __init__(
        self, say: Callable[[str], object], activity: Callable[[], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._activity, self._clock = say, activity, clock
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="heartbeat", daemon=True)
        self.spoke()

    def __enter__(self) -> "Heartbeat":
        self.spoke()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(TICK_SECONDS)

    def spoke(self) -> None:
        """Something else was said: the silence begins again."""
        self._since, self._wait = self._clock(), FIRST_SECONDS

    def tick(self) -> None:
        """Say the activity if it is time."""
        if self._clock() - self._since < self._wait:
            return
        line = self._activity()
        self._since, self._wait = self._clock(), min(2 * self._wait, LONGEST_SECONDS)
        if line:
            self._say(line)

    def _repeat(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            self.tick()


def duration(seconds: float) -> str:
    """`0:07`, `12:30`, `1:02:03`."""
    whole = max(round(seconds), 0)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


@contextmanager
def phase(what: str, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """A long piece of work: while it lasts, `what` and for how long, at intervals."""
    begun = clock()
    with Heartbeat(say, lambda: f"{what}, for {duration(clock() - begun)}", clock):
        yield


class Steps:
    """Progress over steps of about the same length: `2 of 12: training · about 1:20 left`."""

    def __init__(self, total: int, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._say, self._clock = total, say, clock
        self._done, self._begun = 0, clock()

    def begin(self, what: str) -> None:
        """The next step begins."""
        left = ""
        if self._done:
            each = (self._clock() - self._begun) / self._done
            left = f" · about {duration(each * (self._total - self._done))} left"
        self._done += 1
        self._say(f"{self._done} of {self._total}: {what}{left}")
