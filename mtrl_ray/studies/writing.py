"""The output of a study: `NAME.json`, `NAME.md` and the figures next to them.

1. All files are rewritten from the runs' folders after every run, so an interrupted study has the results so far.
2. The page explains the intervals, lists missing runs with the reason, and shows the commands for the table and every run.
3. Files are replaced atomically.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.studies import areas, speed, trade_offs
from mtrl_ray.studies.cells import Cell, label
from mtrl_ray.studies.definition import Definition
from mtrl_ray.studies.figures import Figure, figures, plain
from mtrl_ray.studies.runs import State, failure, state
from mtrl_ray.studies.table import Run, grouped, read_run, table
from mtrl_ray.studies.win_rates import Rates, over_start, win_rates

INTERVALS = (
    "Scores are means over held-out contexts, the same in every run, then over seeds. Brackets: the 95 % interval by "
    "Student's t over the seeds (one seed: over the contexts). *Contexts*: the 95 % interval over the contexts, each "
    "one's scores averaged over the seeds first; contexts made from one source are a cluster, and the number of "
    "clusters follows the interval if it is not that of the contexts."
)
AREA = "area-"
"""Begins the names of figures of areas."""
AGAINST = "against"
"""The name of the figure of trade-offs."""
LISTED = 12
"""Runs that have not begun are counted, not listed, if there are more."""
CURVES = "## Learning curves\n\nSeeds thin, their mean thick; dashed, the scripted agents."
AREAS = (
    "The mean of a metric over all iterations, then over seeds, and the difference from the baseline, paired by seed. "
    "*Smallest*: the smallest true difference that as many seeds show with probability .8."
)

SPEEDS = (
    "*Probe*: how likely the start takes up what the user said. *Greedy*: with the likeliest tokens. The gap goes from the "
    "run's own start to the expert. *Area*: the mean share of it over the run's conversations. *To 70 %*: conversations, or "
    "seconds of training, until the last 128 training conversations score that much. "
    "*Lowest*: the least that 128 of them in a row scored."
)


@dataclass(frozen=True)
class Output:
    """Folder of a study's output, and the command that the page shows."""

    name: str
    folder: Path
    command: str

    def check(self) -> None:
        """Check before the runs start that the folder can be written. Raises ConfigurationError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(0, "no permission to write")
        except OSError as error:
            raise ConfigurationError(
                f"--out {self.folder}: {error.strerror}; give a folder that can be written"
            ) from None


def write_study(definition: Definition, cells: Sequence[Cell], output: Output) -> dict[str, Any]:
    """Write all files from the runs' folders. Returns the content of `NAME.json`."""
    runs = [run for cell in cells if (run := read_run(cell)) is not None]
    result = {
        "study": output.name,
        "title": definition.title,
        "command": output.command,
        "intervals": INTERVALS,
        **table(definition, runs),
        "areas": areas.areas(definition, grouped(runs)),
        "missing": _missing(cells, runs),
    }
    if definition.speed or definition.closes is not None or definition.holds:
        result["speeds"] = speed.speeds(runs)
    if definition.over_start:
        for row, group in zip(result["rows"], grouped(runs), strict=True):
            row["over_start"] = over_start(group)
    if definition.win_rates:
        result["win_rates"] = win_rates(definition, runs)
    drawn = [*_drawn(definition, result), *(figures(definition, runs) if runs else [])]
    for figure in drawn:
        _replace(output.folder / f"{output.name}-{figure.name}.svg", figure.svg)
    _replace(output.folder / f"{output.name}.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    _replace(output.folder / f"{output.name}.md", page(definition, result, drawn, cells))
    return result


def page(definition: Definition, result: dict[str, Any], drawn: Sequence[Figure], cells: Sequence[Cell]) -> str:
    """The page of the study as Markdown."""
    name = result["study"]
    parts = [f"# {definition.title}", definition.about.strip(), f"```\n{result['command']}\n```", INTERVALS]
    if definition.columns is not None:
        parts += _pivots(definition, definition.columns, result["rows"])
    parts += ["## Every cell" if definition.columns else "", _every_row(definition, result["rows"])]
    if definition.published is not None and definition.published.scores:
        scores = definition.published.scores
        table_of = _markdown(list(scores), [[f"{score:.3f}" for score in scores.values()]])
        parts += [f"As published ({definition.published.source}):", table_of]
    if result.get("win_rates"):
        parts += _win_rates(definition, result["win_rates"])
    if result["differences"]:
        parts += [f"## Against {label(definition.baseline)}", _difference_rows(definition, result["differences"])]
    if result["areas"]:
        parts += ["## Areas under the curves", AREAS, _area_rows(definition, result["areas"])]
    if result.get("speeds"):
        parts += ["## Every run", SPEEDS, _markdown(*speed.shown(result["speeds"], list(definition.axes)))]
    for heading, chosen in (
        ("", [figure for figure in drawn if figure.name.startswith((AREA, AGAINST))]),
        (CURVES, [figure for figure in drawn if not figure.name.startswith((AREA, AGAINST))]),
    ):
        parts += [heading, *(f"![{figure.title}]({name}-{figure.name}.svg)" for figure in chosen)] if chosen else []
    if result["missing"]:
        parts += ["## Missing", _missing_lines(result["missing"], len(cells))]
    new = {tuple(_values(entry).items()) for entry in result["missing"] if entry["state"] == State.NEW}
    commands = "\n".join(
        cell.command
        for cell in cells
        if tuple({**cell.values, "seed": cell.seed}.items()) not in new or len(new) == len(cells)
    )
    parts += [
        "## Commands",
        "The whole table by the command above; each run alone by its own:",
        f"```\n{commands}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _missing(cells: Sequence[Cell], runs: Sequence[Run]) -> list[dict[str, Any]]:
    known = {run.cell.name for run in runs}
    return [
        {**cell.values, "seed": cell.seed, "state": str(state(cell)), "sentence": failure(cell)}
        for cell in cells
        if cell.name not in known
    ]


def _missing_lines(missing: Sequence[dict[str, Any]], runs: int) -> str:
    """A line for each missing run; those that have not begun are counted if they are more than `LISTED`."""
    new = [entry for entry in missing if entry["state"] == State.NEW]
    shown = [entry for entry in missing if entry not in new] if len(new) > LISTED else missing
    lines = [f"- {_missing_line(entry)}" for entry in shown]
    if len(new) > LISTED:
        lines.append(f"- {len(new)} of {runs} runs have not begun; the command with `--list` names them")
    return "\n".join(lines)


def _missing_line(entry: dict[str, Any]) -> str:
    return f"{label(_values(entry))}: {entry['state']}" + (f" ({entry['sentence']})" if entry["sentence"] else "")


def _values(entry: dict[str, Any]) -> dict[str, Any]:
    """The axes and the seed of a missing run."""
    return {axis: name for axis, name in entry.items() if axis not in ("state", "sentence")}


def _pivots(definition: Definition, columns: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """One table per combination of values of the axes other than those of the rows and the columns."""
    *kept, down = [axis for axis in definition.axes if axis != columns] or [columns]
    if down == columns:
        return []
    parts = []
    for names in dict.fromkeys(tuple(row[axis] for axis in kept) for row in rows):
        chosen = [row for row in rows if tuple(row[axis] for axis in kept) == names]
        heads = [name for name in definition.axes[columns] if any(row[columns] == name for row in chosen)]
        by_place = {(row[down], row[columns]): row for row in chosen}
        lines = [
            [name, *(_interval(by_place.get((name, head))) for head in heads)]
            for name in definition.axes[down]
            if any(row[down] == name for row in chosen)
        ]
        parts += [f"## {label(dict(zip(kept, names, strict=True)))}" if kept else "", _markdown([down, *heads], lines)]
    return parts


def _every_row(definition: Definition, rows: Sequence[dict[str, Any]]) -> str:
    scripted = [name for name in ("greedy", "expert") if any(name in row for row in rows)]
    extra = [key for key in definition.metrics if any(row["metrics"].get(key) for row in rows)]
    heads = [*definition.axes, "seeds", "start", "end", "end: contexts", "change", "gap closed", *scripted, *extra]
    heads += [*(["win rate over start"] if definition.over_start else []), "conversations", "minutes"]
    lines = [
        [
            *(row[axis] for axis in definition.axes),
            str(row["seeds"]),
            _interval(row["start"]),
            _interval(row),
            _interval(row["contexts"]),
            _interval(row["change"], signed=True),
            "–" if row.get("gap") is None else f"{row['gap']['mean']:.0%}",
            *(_interval(row.get(name)) for name in scripted),
            *(_interval(row["metrics"].get(key)) for key in extra),
            *([_interval(row["over_start"])] if definition.over_start else []),
            _spread([run["conversations"] for run in row["runs"]]),
            _spread([run["seconds"] / 60 for run in row["runs"]], digits=1),
        ]
        for row in rows
    ]
    return _markdown(heads, lines) if lines else "No run has finished yet."


def _win_rates(definition: Definition, rates: Rates) -> list[str]:
    """The matrix of win rates, and the published one below it."""
    names = list(rates)
    parts = [
        "## Win rates",
        "How often the row's conversations are preferred to the column's on the same held-out context.",
        _markdown(["", *names], [[row, *(_interval(rates[row].get(column)) for column in names)] for row in names]),
    ]
    if definition.published is not None and definition.published.win_rates:
        published = definition.published.win_rates
        lines = [
            [row, *(f"{r:.3f}" if (r := published[row].get(name)) else "–" for name in published)] for row in published
        ]
        parts += [f"As published ({definition.published.source}):", _markdown(["", *published], lines)]
    return parts


def _difference_rows(definition: Definition, differences: Sequence[dict[str, Any]]) -> str:
    heads = [*definition.axes, "seeds", "difference", "contexts"]
    lines = [
        [
            *(entry[axis] for axis in definition.axes),
            str(entry["seeds"]),
            _interval(entry, signed=True),
            _interval(entry["contexts"], signed=True),
        ]
        for entry in differences
    ]
    return _markdown(heads, lines)


def _drawn(definition: Definition, result: dict[str, Any]) -> list[Figure]:
    """The figures of areas, and of what was achieved against a metric."""
    rows = result["areas"]
    known = list(dict.fromkeys(row["metric"] for row in rows))
    traded = trade_offs.draw(definition, result["rows"])
    against = [] if traded is None else [Figure(AGAINST, f"score against {definition.against}", traded)]
    return against + [
        Figure(f"{AREA}{plain(metric)}", f"area of {metric}", areas.draw(definition, metric, rows)) for metric in known
    ]


def _area_rows(definition: Definition, rows: Sequence[dict[str, Any]]) -> str:
    heads = ["metric", *definition.axes, "seeds", "area", "difference", "smallest", f"seeds for {areas.EFFECT:g}"]
    lines = [
        [
            row["metric"],
            *(row[axis] for axis in definition.axes),
            str(row["seeds"]),
            _interval(row),
            _interval(row["difference"], signed=True),
            f"{row['smallest']:.3f}" if "smallest" in row else "–",
            str(row.get("runs_for", "–")),
        ]
        for row in rows
    ]
    return _markdown(heads, lines)


def _interval(entry: dict[str, Any] | None, signed: bool = False) -> str:
    """`0.412 [0.351, 0.474]`, with the number of clusters if they are fewer than what was observed; a dash for unknown."""
    if entry is None or entry["mean"] is None:
        return "–"
    form = "{:+.3f}" if signed else "{:.3f}"
    ends = [form.format(entry[key]) if entry[key] is not None else "?" for key in ("low", "high")]
    clusters = entry.get("clusters", entry.get("n"))
    grouped = "" if clusters == entry.get("n") else f" ({clusters} clusters)"
    return f"{form.format(entry['mean'])} [{', '.join(ends)}]{grouped}"


def _spread(values: Sequence[float], digits: int = 0) -> str:
    low, high = (f"{value:,.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = "|".join("---" for _ in heads)
    return "\n".join([f"| {' | '.join(heads)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)])


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
