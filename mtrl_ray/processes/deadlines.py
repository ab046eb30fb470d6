"""Calls of other people's code (users, environments) with a deadline.

Each call runs on its own thread; finished threads are reused. There are as many threads as concurrent calls. A call past its
deadline fails with a sentence that names it. A thread cannot be ended from outside: it is abandoned, and its later result is
dropped. Whatever a call raises is its failure, `SystemExit` too: it never ends the caller's thread.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any

from mtrl_ray.errors import DataError, EngineError
from mtrl_ray.processes.refs import T

SLICE_SECONDS = 1.0
"""Between two signs of life while a caller waits for its call."""


@dataclass(frozen=True)
class _Call:
    future: Future[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    name: str
    deadline: float


class Late(DataError):
    """The called code did not answer in time."""


class Calls:
    """Runs calls that take at most `seconds` each. `submit` and `expire` belong to one thread; any may `run`."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._idle: queue.SimpleQueue[_Helper] = queue.SimpleQueue()
        self._open: dict[Future[Any], _Call] = {}

    def submit(self, name: str, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Begin a call; `name` says who is late, as the beginning of a sentence. `expire` has to be called now and then."""
        call = _Call(Future(), function, arguments, name, self._clock() + self._seconds)
        self._open[call.future] = call
        self._begin(call)
        return call.future

    def expire(self) -> None:
        """Fail submitted calls that are past their deadline with an EngineError: they wait for other code."""
        now = self._clock()
        for future, call in list(self._open.items()):
            if future.done():
                del self._open[future]
            elif call.deadline < now:
                del self._open[future]
                _settle(future, error=EngineError(self._late(call.name)))

    def run(self, name: str, function: Callable[..., T], *arguments: Any, alive: Callable[[], object] = int) -> T:
        """Make a call and wait for it; `alive` is called every `SLICE_SECONDS` meanwhile.

        Raises what the call raises, and Late past the deadline.
        """
        call = _Call(Future(), function, arguments, name, self._clock() + self._seconds)
        self._begin(call)
        while True:
            left = call.deadline - self._clock()
            try:
                return call.future.result(timeout=max(min(left, SLICE_SECONDS), 0.0))
            except TimeoutError:
                if call.future.done():  # the call raised a TimeoutError of its own
                    raise
                if left <= 0:
                    raise Late(self._late(name)) from None
                alive()

    def _begin(self, call: _Call) -> None:
        try:
            helper = self._idle.get_nowait()
        except queue.Empty:
            helper = _Helper(self._idle)
        helper.inbox.put(call)

    def _late(self, name: str) -> str:
        return f"{name} did not answer within {self._seconds:g} s (rollout.user_seconds)"


class _Helper:
    def __init__(self, idle: "queue.SimpleQueue[_Helper]") -> None:
        self.inbox: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._idle = idle
        threading.Thread(target=self._serve, name="user", daemon=True).start()

    def _serve(self) -> None:
        while True:
            call = self.inbox.get()
            try:
                result, error = call.function(*call.arguments), None
            except Exception as raised:
                result, error = None, raised
            except BaseException as raised:
                result, error = None, DataError(f"{call.name} raised {type(raised).__name__}")
            self._idle.put(self)
            _settle(call.future, result, error)
            del call, result, error


def _settle(future: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    """Takes effect once; later calls are ignored."""
    try:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
    except InvalidStateError:
        return
