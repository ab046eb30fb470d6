"""The charts of a report: the results as bars, and the learning curves of the recorded metrics.

A chart appears when at least one of its metrics was recorded. Metrics without a chart are in the report's table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mtrl_ray.monitoring.charts import Line, Stack, interval_chart, line_chart, stacked_chart
from mtrl_ray.monitoring.contents import Row
from mtrl_ray.monitoring.names import shown
from mtrl_ray.statistics.estimates import Estimate

UNIT = (0.0, 1.0)
WHOLE = "iteration/seconds"


@dataclass(frozen=True)
class Figure:
    """A chart with its texts. `legend`: (label, colour) of each series. `latest`: the last value."""

    title: str
    note: str
    svg: str
    legend: list[tuple[str, str]] = field(default_factory=list)
    latest: str = ""


@dataclass(frozen=True)
class Plan:
    """Definition of a chart of one or more metrics over iterations; `lines`: (key, label, colour).

    `rare`: the metrics are not those of every iteration, so lines connect over others. A metric X with X_low and X_high has
    its interval as whiskers.
    """

    title: str
    note: str
    lines: Sequence[tuple[str, str, str]]
    bounds: tuple[float, float] | None = None
    rare: bool = False


PLANS = (
    Plan(
        "Q on held-out conversations",
        "against the returns of the conversations",
        [("q/r", "correlation r", "s1"), ("q/calibration", "calibration error", "s2")],
        (-1.0, 1.0),
    ),
    Plan(
        "Q's ranks of the answers in a state",
        "against what came of them, continued",
        [("ranking/rank_correlation", "Spearman's ρ", "s1"), ("ranking/slope", "slope", "s2")],
        (-1.0, 2.0),
        rare=True,
    ),
    Plan(
        "Gain of the first choice",
        "in score, over the state's mean",
        [("ranking/gain", "Q's", "s1"), ("ranking/best_gain", "by continuations", "s2")],
        rare=True,
    ),
    Plan(
        "Q's scores within a state",
        "deviation, in units of the score",
        [("improve/score_within", "deviation", "s1")],
    ),
    Plan("Loss of Q", "", [("q/loss", "loss", "s1")]),
    Plan(
        "Process reward model on unseen conversations",
        "against their scores, before its update",
        [("prm/r", "correlation r", "s1"), ("prm/pair_accuracy", "pairs in order", "s2")],
        (-1.0, 1.0),
    ),
    Plan(
        "Best-paid turn",
        "share that is one the user says mattered most",
        [("rewards/agreement", "best paid", "s1"), ("rewards/agreement_chance", "at random", "s2")],
        (0.0, 1.0),
    ),
    Plan("KL from the reference", "nats per token", [("improve/kl_reference", "KL", "s1")]),
    Plan(
        "Length of an update",
        "KL from before to after it, nats per token",
        [("improve/kl_update", "whole update", "s1"), ("improve/kl_step", "mean of its steps", "s2")],
    ),
    Plan("Share of the update kept", "below 1 it was shortened", [("improve/step_fraction", "kept", "s1")], UNIT),
    Plan("Entropy of the policy", "nats per token", [("improve/entropy", "entropy", "s1")]),
    Plan(
        "Critic's explained variance",
        "share of the returns' variance",
        [("improve/explained_variance", "explained variance", "s1")],
        (-1.0, 1.0),
    ),
    Plan(
        "Tokens of an answer",
        "of the collected conversations",
        [("collect/answer_tokens", "mean", "s1"), ("collect/answer_tokens_p95", "95th percentile", "s2")],
    ),
    Plan(
        "Answers cut at the token limit",
        "share",
        [("collect/truncated", "collected", "s1"), ("respond/truncated", "sampled in states", "s2")],
        UNIT,
    ),
    Plan(
        "Answers that differ in a state",
        "mean number among those sampled",
        [("respond/distinct", "different answers", "s1")],
    ),
    Plan(
        "Tokens per second",
        "sampled in collection, trained in improvement",
        [
            ("collect/tokens_per_second", "sampled", "s1"),
            ("improve/tokens_per_second", "trained", "s2"),
        ],
    ),
)
RESULTS = (("greedy", "greedy", "rest"), ("start", "start", "s2"), ("end", "end", "s1"), ("expert", "expert", "rest"))


def results(summary: dict[str, Estimate]) -> Figure | None:
    """Bars of all estimates in the summary; None if there are none."""
    rows = [(label, summary[key], colour) for key, label, colour in RESULTS if key in summary]
    if not rows:
        return None
    return Figure("Score on held-out contexts", "mean with 95 % interval", interval_chart(rows))


def curves(rows: Sequence[Row], summary: dict[str, Estimate]) -> list[Figure]:
    """The learning curves, in display order."""
    figures = [_scores(rows, summary), *(_planned(plan, rows) for plan in PLANS), _seconds(rows)]
    return [figure for figure in figures if figure is not None]


def _scores(rows: Sequence[Row], summary: dict[str, Estimate]) -> Figure | None:
    parts = (
        ("collect/score_mean", "collect/score_low", "collect/score_high", "in training", "s1", False),
        ("evaluation/mean", "evaluation/low", "evaluation/high", "held out", "s3", True),
    )
    lines = []
    for mean, low, high, label, colour, whiskers in parts:
        known = [row for row in rows if mean in row]
        # Evaluations are rare, so their line connects over iterations without one. Every iteration collects.
        chosen = known if whiskers else rows
        if known:
            band = [(row[low], row[high]) if {mean, low, high} <= row.keys() else None for row in chosen]
            lines.append(Line(label, _x(chosen), [row.get(mean) for row in chosen], colour, band, whiskers))
    if not lines:
        return None
    references = [(key, summary[key].mean) for key in ("greedy", "expert") if key in summary]
    return Figure(
        "Score",
        "mean with 95 % interval",
        line_chart(lines, references, UNIT),
        _legend(lines),
        _latest(lines[0]),
    )


def _planned(plan: Plan, rows: Sequence[Row]) -> Figure | None:
    chosen = [row for row in rows if any(key in row for key, _, _ in plan.lines)] if plan.rare else rows
    lines = [
        Line(label, _x(chosen), [row.get(key) for row in chosen], colour, _interval(key, chosen), whiskers=True)
        for key, label, colour in plan.lines
        if any(key in row for row in chosen)
    ]
    if not lines:
        return None
    return Figure(plan.title, plan.note, line_chart(lines, (), plan.bounds), _legend(lines), _latest(lines[0]))


def _interval(key: str, rows: Sequence[Row]) -> list[tuple[float, float] | None] | None:
    """A metric's ends of its interval in each row; None if it never has one."""
    low, high = f"{key}_low", f"{key}_high"
    if not any(low in row for row in rows):
        return None
    return [(row[low], row[high]) if {low, high} <= row.keys() else None for row in rows]


def _seconds(rows: Sequence[Row]) -> Figure | None:
    """Time per part of an iteration. Overlapping parts can add up to more than the iteration took."""
    timed = [row for row in rows if any(key.endswith("/seconds") for key in row)]
    keys = dict.fromkeys(key for row in timed for key in row if key.endswith("/seconds") and key != WHOLE)
    if not timed:
        return None
    largest = sorted(keys, key=lambda key: sum(row.get(key, 0.0) for row in timed), reverse=True)[:6]
    shown_keys = [key for key in keys if key in largest]
    stacks = [
        Stack(key.split("/")[0], [max(row.get(key, 0.0), 0.0) for row in timed], f"s{place}")
        for place, key in enumerate(shown_keys, start=1)
    ]
    rest = [max(row.get(WHOLE, 0.0) - sum(row.get(key, 0.0) for key in shown_keys), 0.0) for row in timed]
    if any(rest):
        stacks.append(Stack("the rest", rest, "rest"))
    whole = [row[WHOLE] for row in timed if WHOLE in row]
    return Figure(
        "Seconds per iteration",
        "by part",
        stacked_chart(_x(timed), stacks),
        [(stack.label, stack.colour) for stack in stacks],
        f"{shown(whole[-1])} s" if whole else "",
    )


def _x(rows: Sequence[Row]) -> list[float]:
    return [row["iteration"] for row in rows]


def _legend(lines: Sequence[Line]) -> list[tuple[str, str]]:
    return [(line.label, line.colour) for line in lines] if len(lines) > 1 else []


def _latest(line: Line) -> str:
    known = [value for value in line.y if value is not None]
    return shown(known[-1])
