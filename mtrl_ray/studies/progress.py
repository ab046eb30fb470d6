"""Progress messages of a study: the current run, the number of finished runs, and the time left.

1. One line through `say` when a run begins and one when it ends; the view of a run shows its own progress.
2. Time left: the mean seconds of the runs that ended in this session (if none, of earlier sessions), times the number of
   remaining runs, divided by the number of parallel runs. Before any run has ended: the budget of minutes, if there is one.
"""

import time
from collections.abc import Callable, Sequence

from mtrl_ray.errors import DataError
from mtrl_ray.monitoring.heartbeat import duration
from mtrl_ray.studies.cells import Cell
from mtrl_ray.studies.runs import failure, read_summary, trained_seconds

Say = Callable[[str], None]


class Progress:
    """Counts the runs of one session. `known`: runs that finished earlier."""

    def __init__(
        self,
        cells: Sequence[Cell],
        known: Sequence[Cell],
        parallel: int,
        say: Say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._left = {cell.name: cell for cell in cells}
        self._total, self._parallel, self._say, self._clock = len(cells), parallel, say, clock
        self._begun: dict[str, float] = {}
        self._seconds: list[float] = []
        self._earlier = [_recorded(cell) for cell in known]
        self.failed = 0

    @property
    def done(self) -> int:
        """Number of runs that ended, completed or failed."""
        return self._total - len(self._left)

    def begin(self, cell: Cell) -> str:
        """Report the start of a run; returns its title, for example `3 of 12: rloo-itpo-s0`."""
        self._begun[cell.name] = self._clock()
        title = f"{self.done + len(self._begun)} of {self._total}: {cell.name}"
        self._say(f"run {title} · {self.time_left()}")
        return title

    def end(self, cell: Cell, completed: bool) -> None:
        """Report the end of a run and its result."""
        seconds = self._clock() - self._begun.pop(cell.name)
        del self._left[cell.name]
        if completed:
            self._seconds.append(seconds)
            self._say(f"{cell.name} ended in {duration(seconds)}: {_score(cell)} · {self.done} of {self._total} done")
        else:
            self.failed += 1
            self._say(f"{cell.name} failed after {duration(seconds)}: {failure(cell)}")

    def time_left(self) -> str:
        """Time left as text, for example `about 12:30 left`; says so if it is unknown."""
        seconds = self.seconds_left()
        return "time left unknown" if seconds is None else f"about {duration(seconds)} left"

    def seconds_left(self) -> float | None:
        """Estimated seconds until the last run ends; None if unknown."""
        now, each = self._clock(), self._each()
        if each is None:
            return None
        waiting = len(self._left) - len(self._begun)
        running = sum(max(each - (now - begun), 0.0) for begun in self._begun.values())
        return (each * waiting + running) / min(self._parallel, max(len(self._left), 1))

    def _each(self) -> float | None:
        for measured in (self._seconds, self._earlier):
            if measured:
                return sum(measured) / len(measured)
        minutes = [cell.settings.run.minutes for cell in self._left.values()]
        known = [60 * each for each in minutes if each is not None]
        return sum(known) / len(known) if known and len(known) == len(minutes) else None


def _recorded(cell: Cell) -> float:
    try:
        return trained_seconds(cell.folder)
    except DataError:
        return 0.0


def _score(cell: Cell) -> str:
    summary = read_summary(cell.folder)
    said = [f"{name} {summary[name]['mean']:.3f}" for name in ("start", "end") if name in summary]
    return ", ".join(said)
