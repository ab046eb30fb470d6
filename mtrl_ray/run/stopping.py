"""A stop signal (SIGTERM, SIGINT) ends a run with a checkpoint, within 30 seconds.

The iteration under way may end within `GRACE_SECONDS`. A checkpoint is then written, and the run ends. Outside an iteration
the run ends at once. So it does on a second signal.

An iteration that does not end in time is given up. Every iteration of that length is followed by a checkpoint (`trainer`), so
the finished ones are kept; what the journal got of this one is used when the run is resumed. A checkpoint that is not written
`LATEST_SECONDS` after the signal is given up too, and the former one stays.

A handler runs between two steps of Python, so a call outside Python that does not come back (a copy to a filesystem that
hangs) is not interrupted, and hides the signal. A thread still receives it, and ends the process where it stands
`LAST_SECONDS` later, as a kill would. Signals reach the main thread alone; a run in another thread is stopped by what started
it.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any, Literal

GRACE_SECONDS = 12.0
"""After a signal, for the iteration under way to end."""
LATEST_SECONDS = 24.0
"""After a signal, for the checkpoint to be written. The rest of the 30 s is for the end of the actors."""
LAST_SECONDS = 29.0
"""After a signal, for the process to end by itself."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)

Manner = Literal["at once", "grace", "held"]


class Stopped(KeyboardInterrupt):
    """The run was stopped by signal `number`. Ray turns it into a bare KeyboardInterrupt if it interrupts a wait."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """The exit code of a command that was stopped, as shells give it: 143 for SIGTERM, 130 for SIGINT."""
    return 128 + int(getattr(interrupt, "number", signal.SIGINT))


class StopSignal:
    """Listens for one run. `number`: of the signal that came, None before."""

    def __init__(self, ends_process: bool = False) -> None:
        """`ends_process`: whether a thread ends the process if a call outside Python hides the signal (see above)."""
        self.number: int | None = None
        self._ends_process = ends_process
        self._received = 0.0  # when it came
        self._manner: Manner = "at once"
        self._alarm: Any = None  # who was told of alarms before

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Answer stop signals inside this context; a bare KeyboardInterrupt inside becomes `Stopped`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            with _ending() if self._ends_process else nullcontext():
                yield
        except Stopped:  # raised here, or by an inner listener
            raise
        except KeyboardInterrupt:
            raise Stopped(self.number or signal.SIGINT) from None
        finally:
            if self._alarm is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, self._alarm)
                self._alarm = None
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
        """Raises `Stopped` if a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)

    def _handle(self, number: int, frame: FrameType | None) -> Any:
        again, self.number = self.number is not None, number
        if again or self._manner == "at once":
            raise Stopped(number)
        self._received = time.monotonic()
        self._bound()

    def _bound(self) -> None:
        """Have `_lapse` called when the time since the signal is over."""
        before = signal.signal(signal.SIGALRM, self._lapse)
        self._alarm = before if self._alarm is None else self._alarm
        seconds = GRACE_SECONDS if self._manner == "grace" else LATEST_SECONDS
        signal.setitimer(signal.ITIMER_REAL, max(self._received + seconds - time.monotonic(), 0.001))

    def _lapse(self, number: int, frame: FrameType | None) -> Any:
        raise Stopped(self.number or signal.SIGTERM)


@contextmanager
def _ending() -> Iterator[None]:
    """A signal inside this context ends the process after `LAST_SECONDS`, unless the context ends before."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    over = threading.Event()
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_after_signal, args=(receiver, over), name="stop signal", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        sender.close()


def _end_after_signal(receiver: socket.socket, over: threading.Event) -> None:
    """Wait for a stop signal. `receiver` gives a byte per signal, and is closed last, because more may come."""
    with receiver:
        number = next((byte for byte in iter(lambda: receiver.recv(1), b"") if byte[0] in SIGNALS), None)
        if number is None or over.wait(LAST_SECONDS):
            return
    name = signal.Signals(number[0]).name
    said = f"{name} came {LAST_SECONDS:g} s ago, and what is under way does not come back: the run is left as it is"
    with suppress(OSError):  # nobody reads it
        os.write(2, f"{said}\n".encode())
    os._exit(128 + number[0])
