"""A stop signal (SIGTERM, SIGINT) ends a run with a checkpoint, within 30 seconds.

1. The iteration under way may end within `GRACE_SECONDS`; a checkpoint is then written, and the run ends. Outside an
   iteration the run ends at once.
2. An iteration that does not end in time is given up. Iterations of that length are followed by a checkpoint each
   (`trainer`), so the finished ones are kept; what the journal got of this one is used when the run is resumed. A
   checkpoint that is not written `LATEST_SECONDS` after the signal is given up too; the former one stays.
3. A second signal ends the run where it is.
4. Signals reach the main thread alone; a run in another thread is stopped by whoever started it.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal

GRACE_SECONDS = 12.0
"""After a signal, for the iteration under way to end."""
LATEST_SECONDS = 24.0
"""After a signal, for the checkpoint to be written. The rest of the 30 s is for the end of the actors."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)

Manner = Literal["at once", "grace", "held"]


class Stopped(KeyboardInterrupt):
    """The run was stopped by signal `number`. Ray turns it into a bare KeyboardInterrupt where it interrupts a wait."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class StopSignal:
    """Listens for one run. `number`: of the signal that came, None before."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._heard = 0.0  # when it came
        self._manner: Manner = "at once"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Answer stop signals inside this context; a bare KeyboardInterrupt inside becomes `Stopped`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._lapse)
        try:
            yield
        except KeyboardInterrupt:
            raise Stopped(self.number or signal.SIGINT) from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def answered(self, manner: Manner) -> Iterator[None]:
        """How a signal inside this context is answered: `grace`, it may end within `GRACE_SECONDS`; `held`,
        within `LATEST_SECONDS`, whenever the signal came.
        """
        before, self._manner = self._manner, manner
        try:
            if self.number is not None:
                self._bound()
            yield
        finally:
            self._manner = before
            if self.number is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def check(self) -> None:
        """Raises `Stopped` where a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)

    def _hear(self, number: int, frame: FrameType | None) -> Any:
        again, self.number = self.number is not None, number
        if again or self._manner == "at once":
            raise Stopped(number)
        self._heard = time.monotonic()
        self._bound()

    def _bound(self) -> None:
        """Have `_lapse` called when the time since the signal is over."""
        seconds = GRACE_SECONDS if self._manner == "grace" else LATEST_SECONDS
        signal.setitimer(signal.ITIMER_REAL, max(self._heard + seconds - time.monotonic(), 0.001))

    def _lapse(self, number: int, frame: FrameType | None) -> Any:
        raise Stopped(self.number or signal.SIGTERM)
