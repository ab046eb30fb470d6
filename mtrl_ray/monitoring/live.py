"""The live view: current activity of each part, results so far, and time left.

1. In a terminal, a table is redrawn a few times per second from the state that `part` and `iteration` set. These calls
   only store values, so they are cheap and safe from any thread.
2. If the output is not a terminal (a job's log, a pipe), each iteration is one plain line; after 10 s without a line, and then
   at growing intervals, a line says what the parts do (`heartbeat`).
3. Time left: the mean seconds of the iterations of this view, times the number of remaining ones, at most the run's
   budget of minutes. Earlier iterations of a resumed run do not count.
4. Text is shown literally: markup and control sequences have no effect.
"""

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.control import strip_control_codes
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mtrl_ray.monitoring.heartbeat import Heartbeat, duration

PARTS = ("rollout", "replay", "learner", "weights")
"""The parts shown from the start; others appear with their first message."""
REFRESHES_PER_SECOND = 4
SECONDS = "iteration/seconds"
FAILURES = "collect/failures"
UPDATE, KEPT, CUT = "improve/kl_update", "improve/step_fraction", "collect/truncated"
USUAL = {FAILURES: 0.0, KEPT: 1.0, CUT: 0.0}
"""Numbers that are shown only if they are others."""
Metrics = Mapping[str, float | None]


class LiveView:
    """Shows the progress of a run. A context manager: it draws only between enter and exit."""

    def __init__(
        self,
        run: str,
        iterations: int,
        *,
        done: int = 0,
        minutes: float | None = None,
        table: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`iterations`: total number; `done`: those before a resume. `minutes`: budget, from `begin` on.

        `table` False: plain lines even in a terminal.
        """
        self._run = run
        self._iterations = iterations
        self._budget = math.inf if minutes is None else 60 * minutes
        self._console = console or Console()
        self._clock = clock
        self._started = clock()
        self._begun = self._last_end = self._started
        self._number = done
        self._seen = 0
        self._parts: dict[str, tuple[str, float]] = dict.fromkeys(PARTS, ("", self._started))
        self._metrics: Metrics = {}
        self._live: Live | None = None
        self.heartbeat = Heartbeat(self._print, self._activity, clock)
        if table and self._console.is_terminal:
            self._live = Live(
                get_renderable=self._render, console=self._console, refresh_per_second=REFRESHES_PER_SECOND
            )

    def __enter__(self) -> "LiveView":
        self._started = self._begun = self._last_end = self._clock()
        self._parts = {name: (doing, self._started) for name, (doing, _) in self._parts.items()}
        if self._live is not None:
            self._live.start(refresh=True)
        else:
            self.heartbeat.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self.heartbeat.__exit__()

    def part(self, name: str, doing: str) -> None:
        """Set the current activity of a part; an empty text means idle."""
        self._parts = {**self._parts, name: (doing, self._clock())}

    def begin(self) -> None:
        """Start the clock: the first iteration of this view begins."""
        self._begun = self._last_end = self._clock()

    def iteration(self, number: int, metrics: Metrics) -> None:
        """Iteration `number` (from 1) has ended. Metrics of earlier ones stay visible until they are replaced."""
        self._number = number
        self._seen += 1
        self._last_end = self._clock()
        self._metrics = {**self._metrics, **metrics}
        if self._live is None:
            shown = [outcome(metrics), held_out(metrics), *_details(metrics)]
            self._line(" · ".join([f"iteration {number}/{self._iterations}", *filter(None, shown), self._left()]))

    def note(self, text: str) -> None:
        """Print a permanent line, above the table in a terminal."""
        self._line(text)

    def _line(self, text: str) -> None:
        self.heartbeat.spoke()
        self._print(text)

    def _activity(self) -> str:
        now = self._clock()
        busy = [(name, doing, since) for name, (doing, since) in self._parts.items() if doing not in ("", "idle")]
        doing = " · ".join(f"{name}: {doing} ({duration(now - since)})" for name, doing, since in busy)
        return f"{duration(now - self._started)}  {doing}" if doing else ""

    def _print(self, text: str) -> None:
        plain = strip_control_codes(text.replace("\x1b", ""))
        self._console.print(plain, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _left(self) -> str:
        seconds = self.seconds_left()
        return "time left unknown" if seconds is None else f"{duration(seconds)} left"

    def seconds_left(self) -> float | None:
        """Estimated seconds until the run ends; None before the first iteration."""
        now = self._clock()
        budget = max(self._budget - (now - self._begun), 0.0)
        if not self._seen:
            return None
        each = (self._last_end - self._begun) / self._seen
        rest = each * (self._iterations - self._number) - (now - self._last_end)
        return min(max(rest, 0.0), budget)

    def _render(self) -> Group:
        return Group(self._progress(), self._table(), self._numbers())

    def _progress(self) -> Table:
        row = Table.grid(padding=(0, 2))
        row.add_row(
            Text(self._run, style="bold"),
            ProgressBar(total=max(self._iterations, 1), completed=self._number, width=24),
            Text(f"iteration {self._number} of {self._iterations}"),
            Text(f"{duration(self._clock() - self._started)} elapsed, {self._left()}", style="dim"),
        )
        return row

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2), header_style="dim", pad_edge=False)
        table.add_column("part")
        table.add_column("now", min_width=36)
        table.add_column("for", justify="right")
        now = self._clock()
        for name, (doing, since) in self._parts.items():
            said = strip_control_codes(doing.replace("\x1b", ""))
            table.add_row(name, Text(said or "–"), duration(now - since) if doing else "")
        return table

    def _numbers(self) -> Text:
        if not self._seen:
            return Text("no iteration has ended yet", style="dim")
        shown = [outcome(self._metrics), held_out(self._metrics), *_details(self._metrics)]
        return Text(" · ".join(filter(None, shown)), style="bold")


def outcome(metrics: Metrics) -> str:
    """The mean score of the collected conversations with its interval; empty if there is none."""
    return _interval("score", metrics, "collect/score_mean", "collect/score_low", "collect/score_high")


def held_out(metrics: Metrics) -> str:
    """The mean score of the last evaluation with its interval; empty if there is none."""
    return _interval("held out", metrics, "evaluation/mean", "evaluation/low", "evaluation/high")


def _interval(label: str, metrics: Metrics, mean: str, low: str, high: str) -> str:
    if not _finite(metrics, mean):
        return ""
    known = _finite(metrics, low) and _finite(metrics, high)
    around = f" [{metrics[low]:.3f}, {metrics[high]:.3f}]" if known else ""
    return f"{label} {metrics[mean]:.3f}{around}"


def _details(metrics: Metrics) -> list[str]:
    forms = {
        "improve/kl_reference": "KL {:.4f}",
        UPDATE: "step {:.4f}",
        KEPT: "{:.0%} of it kept",
        "q/r": "Q r {:.2f}",
        "ranking/rank_correlation": "ranks answers ρ {:.2f}",
        "ranking/gain": "first choice {:+.3f}",
        "respond/distinct": "{:.1f} answers differ",
        "collect/answer_tokens": "{:.0f} tokens an answer",
        CUT: "{:.0%} cut",
        "collect/tokens_per_second": "{:,.0f} tokens/s",
        "workers/ready": "workers {:.0f}",
        FAILURES: "{:.0f} failed",
        SECONDS: "{:.1f} s",
    }
    known = [key for key in forms if _finite(metrics, key) and metrics[key] != USUAL.get(key)]
    return [forms[key].format(metrics[key]) for key in known]


def _finite(metrics: Metrics, key: str) -> bool:
    value = metrics.get(key)
    return value is not None and math.isfinite(value)
