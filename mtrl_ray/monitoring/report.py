"""The report of a run: one self-contained HTML file with settings, results, learning curves and conversations.

1. It is rendered from the run's folder (`contents`), at any time; the page says what is missing or damaged.
2. Styles and charts are inline, nothing is fetched, and no script runs; a content security policy makes the
   browser enforce this for any text of a conversation.
3. All text is escaped by the template (autoescape) or by the element tree of the charts; nothing else writes markup.
4. The file is replaced atomically, so a reader never sees a partial report.
"""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason
from mtrl_ray.monitoring.alarms import Alarms
from mtrl_ray.monitoring.charts import interval_text, sparkline
from mtrl_ray.monitoring.contents import Contents, Row, read
from mtrl_ray.monitoring.curves import curves, results
from mtrl_ray.monitoring.examples import Comparison, compare
from mtrl_ray.monitoring.heartbeat import duration
from mtrl_ray.monitoring.names import MEANINGS, in_order, shown
from mtrl_ray.processes.writing import writing
from mtrl_ray.statistics.estimates import Estimate, gap_closed

FILE = "report.html"
STOPS = {
    StopReason.OUTCOME: "ended with its outcome",
    StopReason.USER_LEFT: "the user left",
    StopReason.TURN_LIMIT: "turn limit reached",
    StopReason.TOKEN_LIMIT: "context window full",
    StopReason.LOGGED: "end not recorded",
}


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run's folder and return its path.

    Raises DataError if `folder` is not a folder, EngineError if the page cannot be written.
    """
    page = render(read(folder))
    path = folder / FILE
    temporary = path.with_name(f".{FILE}.writing")
    with writing(path):
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    return path


def render(contents: Contents) -> str:
    """The report as HTML."""
    package = resources.files("mtrl_ray.monitoring")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(shown=shown, interval=interval_text, pretty=_pretty, stop=STOPS.__getitem__)
    template = environment.from_string((package / "report.html.j2").read_text(encoding="utf-8"))
    comparison = compare(contents.start, contents.end)
    summary = contents.summary
    return template.render(
        style=Markup((package / "report.css").read_text(encoding="utf-8")),
        svg=Markup,  # only applied to the output of charts.py
        run=contents,
        alarms=Alarms((int(row["iteration"]), row) for row in contents.rows).said,
        title=contents.setting("run.name") or contents.folder.name,
        trained=_trained(contents),
        headline=_headline(summary, comparison),
        facts=_facts(contents),
        results=results(summary),
        estimates=[(name, summary[name]) for name in _ordered(summary)],
        gap=_gap(summary),
        figures=curves(contents.rows, summary) if contents.rows else [],
        numbers=_numbers(contents.rows),
        comparison=comparison,
        groups=_groups(comparison),
        Role=Role,
        prompt=_prompt,
    )


@dataclass(frozen=True)
class Number:
    """A row of the table of metrics."""

    key: str
    meaning: str
    first: float
    last: float
    spark: str


def _trained(contents: Contents) -> str:
    """A description such as `iterative_ppo on sales, model tiny, seed 0`, with the parts that the config has."""
    algorithm, environment = contents.setting("algorithm.name"), contents.setting("environment.name")
    parts = [
        f"{algorithm} on {environment}" if algorithm and environment else None,
        *(
            f"{label} {contents.setting(path)}"
            for label, path in (("model", "model.path"), ("seed", "run.seed"))
            if contents.setting(path) is not None
        ),
    ]
    return ", ".join(filter(None, parts))


def _headline(summary: dict[str, Estimate], comparison: Comparison) -> str:
    start, end = summary.get("start"), summary.get("end")
    if start is None or end is None:
        missing = [name for name, side in (("start", start), ("end", end)) if side is None]
        return f"No evaluation at the {' and at the '.join(missing)} of the run yet, so nothing to compare."
    change = end.mean - start.mean
    verb = "stayed at" if change == 0 else "rose from" if change > 0 else "fell from"
    values = f"{start.mean:.3f}" if change == 0 else f"{start.mean:.3f} to {end.mean:.3f}"
    sentence = f"The mean score on {end.size('held-out contexts')} {verb} {values}."
    difference = comparison.difference
    if difference is not None and change != 0 and difference.low <= 0 <= difference.high:
        sentence += " The 95 % interval of the difference includes 0: this may be chance."
    return sentence


def _gap(summary: dict[str, Estimate]) -> Estimate | None:
    """The fraction of the gap between initial policy and expert that the run closed; None if unknown."""
    if not {"start", "end", "expert"} <= summary.keys():
        return None
    return gap_closed(summary["start"], summary["end"], summary["expert"])


def _facts(contents: Contents) -> list[tuple[str, str]]:
    """Totals over the recorded iterations."""
    rows, facts = contents.rows, []
    if rows:
        facts.append(("iterations", shown(len(rows))))
    for key, label in (("collect/conversations", "conversations"), ("collect/tokens", "sampled tokens")):
        if any(key in row for row in rows):
            facts.append((label, shown(sum(row.get(key, 0.0) for row in rows))))
    if any("iteration/seconds" in row for row in rows):
        facts.append(("training time", duration(sum(row.get("iteration/seconds", 0.0) for row in rows))))
    return facts


def _ordered(summary: dict[str, Estimate]) -> list[str]:
    known = [name for name in ("start", "end", "expert", "greedy") if name in summary]
    return known + sorted(set(summary) - set(known))


def _numbers(rows: list[Row]) -> list[Number]:
    keys = {key for row in rows for key in row if key != "iteration"}
    series = {key: [row[key] for row in rows if key in row] for key in in_order(keys)}
    return [
        Number(key, MEANINGS.get(key, ""), values[0], values[-1], sparkline(values)) for key, values in series.items()
    ]


def _groups(comparison: Comparison) -> list[tuple[str, list[Any]]]:
    """Examples by heading of their kind; kinds without examples say so."""
    if comparison.difference is None:
        return [("Random draw", comparison.examples)] if comparison.examples else []
    kinds = (("improvement", "Biggest improvement"), ("loss", "Biggest loss"), ("random draw", "Random draw"))
    return [(title, [example for example in comparison.examples if example.kind == kind]) for kind, title in kinds]


def _prompt(conversation: Conversation) -> str:
    """The system prompt of a conversation."""
    return "\n\n".join(turn.text for turn in conversation.turns if turn.role == Role.SYSTEM)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
