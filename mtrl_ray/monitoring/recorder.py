"""Records the metrics of a run to JSON lines, TensorBoard, and Ray's metrics endpoint.

1. `record` appends one JSON object per call to `metrics.jsonl`: `iteration` and the metrics under their own keys. A
   number that is unknown or not finite becomes null. This file is authoritative; the other two are for monitoring.
2. The line is handed to the operating system before `record` returns: a killed process loses no recorded iteration. A
   line that was torn by a crash or a full disk has no newline; it is not read, and is removed by `rewind`, or when the
   file is next opened.
3. `keep` copies the file into a checkpoint. `rewind` restores that copy, in one atomic replacement, when a
   run resumes from there: later lines are removed, lines lost in a crash are restored. TensorBoard discards the
   same steps.
4. Metric `q/r` is the gauge `mtrl_q_r` (Ray adds its prefix: `ray_mtrl_q_r`) with the tag `run`, made when it first has
   a value and Ray is running. Ray drops a gauge that is not set again within two report intervals (20 s), and
   iterations may take longer: a thread repeats the last values until `close`. A metric that is no longer finite is not
   repeated, so its gauge ends.
"""

import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from mtrl_ray.errors import DataError
from mtrl_ray.processes.writing import writing

LOG = logging.getLogger(__name__)

FILE = "metrics.jsonl"
FLUSH_SECONDS = 5
"""Seconds between flushes of TensorBoard's event files; JSON lines are flushed with every call."""
REPEAT_SECONDS = 5.0
"""Seconds between repetitions of gauges; Ray collects them every 10 s."""
JOIN_SECONDS = 2.0
"""Seconds that `close` waits for the thread that repeats gauges."""


class Recorder:
    """Records the metrics of one run in its folder. One recorder per run at a time."""

    def __init__(self, folder: Path, run_name: str, tensorboard: bool = True) -> None:
        """Creates `folder` if it is missing, and removes a torn last line. Ray gauges are set while Ray runs.

        Raises DataError for a damaged file and EngineError if the disk cannot be written, as all methods do.
        """
        self._path = folder / FILE
        with writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
        self._file: FileIO | None = None
        self._board = _Board(folder / "tensorboard") if tensorboard else None
        self._gauges = _Gauges(run_name)
        _cut(self._path, None)

    def record(self, iteration: int, metrics: Mapping[str, float | None]) -> None:
        """Append the metrics of an iteration; None is an unknown number. Raises DataError for values that are not numbers."""
        numbers = {key: _number(key, value) for key, value in metrics.items()}
        finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        line = (json.dumps({"iteration": iteration, **finite}, allow_nan=False) + "\n").encode()
        with writing(self._path):
            if self._file is None:
                self._file = self._path.open("ab", buffering=0)
            while line:
                line = line[self._file.write(line) :]
        if self._board is not None:
            self._board.record(iteration, numbers)
        self._gauges.record(numbers)

    def keep(self, folder: Path) -> None:
        """Copy the metrics recorded so far into `folder`."""
        (folder / FILE).write_bytes(self._path.read_bytes() if self._path.is_file() else b"")

    def rewind(self, iteration: int, kept: Path | None = None) -> None:
        """Remove everything recorded after `iteration`, and restore the copy that `keep` wrote into the folder `kept`.

        Raises DataError for a damaged file.
        """
        if self._file is not None:
            self._file.close()
            self._file = None
        if kept is not None and (kept / FILE).is_file():
            _replace(self._path, (kept / FILE).read_bytes())
        else:
            _cut(self._path, iteration)
        if self._board is not None:
            self._board.rewind(iteration)

    def close(self) -> None:
        """Close the files; a later `record` opens them again."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._board is not None:
            self._board.close()
        self._gauges.close()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """One dictionary per recorded line, in order: `iteration` and metrics; None if a number was not finite.

    Empty if nothing was recorded. Raises DataError naming a damaged line.
    """
    path = folder / FILE
    return [row for row, _ in _lines(path)] if path.is_file() else []


def _lines(path: Path) -> list[tuple[dict[str, Any], str]]:
    """Rows with their text; text after the last newline is a torn line and is ignored."""
    *whole, _torn = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(whole, start=1):
        try:
            text = line.decode("utf-8")
            row = json.loads(text)
            if not isinstance(row, dict) or not isinstance(row.get("iteration"), int):
                raise ValueError("it is not a JSON object with an integer 'iteration'")
        except ValueError as error:
            raise DataError(f"{path}, line {number} cannot be read ({error}); remove this line to continue") from error
        rows.append((row, text))
    return rows


def _cut(path: Path, iteration: int | None) -> None:
    """Remove a torn last line, and the lines after `iteration` if it is given."""
    if not path.is_file():
        return
    lines = [text for row, text in _lines(path) if iteration is None or row["iteration"] <= iteration]
    _replace(path, "".join(f"{text}\n" for text in lines).encode("utf-8"))


def _replace(path: Path, content: bytes) -> None:
    if (path.read_bytes() if path.is_file() else b"") == content:
        return
    temporary = path.with_name(f".{path.name}.writing")
    with writing(path):
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def _number(key: str, value: float | None) -> float:
    if key == "iteration":
        raise DataError(
            "'iteration' cannot be the name of a metric, because it is the key of the iteration; choose another"
        )
    if value is None:
        return math.nan
    try:
        return value if isinstance(value, int) and not isinstance(value, bool) else float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"metric {key!r} is {value!r}; a metric has to be a number") from error


class _Board:
    """TensorBoard event files; a new one after each rewind, which makes TensorBoard discard the removed steps.

    A thread of tensorboardX writes them and ends if the disk cannot be written. The run continues, and the next
    record starts a new file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._forget_from: int | None = None

    def record(self, iteration: int, numbers: Mapping[str, float]) -> None:
        if self._writer is not None and not self._writer.file_writer.event_writer._worker.is_alive():
            self.close()
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(
                str(self._folder),
                purge_step=self._forget_from,
                max_queue=0,  # unbounded, so that `record` never waits for a thread that has ended
                flush_secs=FLUSH_SECONDS,
                # Without the suffix, two files of the same second would have the same name.
                filename_suffix=f".{time.time_ns()}",
            )
        for key, value in numbers.items():
            if math.isfinite(value):
                self._writer.add_scalar(key, value, iteration)

    def rewind(self, iteration: int) -> None:
        self.close()
        self._forget_from = iteration + 1

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                LOG.warning("%s lacks metrics that %s has: %s", self._folder, FILE, error.strerror)


class _Gauges:
    """Ray gauges by metric; does nothing if Ray is not running."""

    def __init__(self, run_name: str) -> None:
        self._tags = {"run": run_name}
        self._gauges: dict[str, Any] = {}
        self._values: dict[str, float] = {}
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def record(self, numbers: Mapping[str, float]) -> None:
        from ray.util.metrics import Gauge

        if not ray_runs():
            return
        for key in numbers.keys() - self._gauges.keys():
            self._gauges[key] = Gauge(gauge_name(key), description=f"mtrl-ray metric {key}", tag_keys=("run",))
        latest = {**self._values, **numbers}
        self._values = {key: float(value) for key, value in latest.items() if math.isfinite(value)}
        self._set()
        if self._thread is None:
            self._closed.clear()
            self._thread = threading.Thread(target=self._repeat, name="mtrl-gauges", daemon=True)
            self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)
            self._thread = None

    def _repeat(self) -> None:
        while not self._closed.wait(REPEAT_SECONDS):
            if ray_runs():
                self._set()

    def _set(self) -> None:
        for key, value in self._values.items():
            self._gauges[key].set(value, tags=self._tags)


def ray_runs() -> bool:
    """Whether this process is connected to a Ray cluster."""
    import ray

    return bool(ray.is_initialized())


def gauge_name(key: str) -> str:
    """The name of a metric's Ray gauge, for example `mtrl_q_r` for `q/r`."""
    return "mtrl_" + re.sub(r"[^a-zA-Z0-9]+", "_", key).strip("_")
