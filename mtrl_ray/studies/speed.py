"""How fast each run of a study closes the gap between its own start and the scripted expert.

1. The gap of a run goes from its start's held-out score to the expert's. A run has reached a share of it when the score of
   its newest training conversations has (`run.ending.Recent`); how many conversations and how many seconds of training
   this took is counted at the end of that iteration.
2. `area` is the mean share over the conversations of the run: 1 if it was at the expert from the first on.
3. The share at the end is that of the held-out score.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtrl_ray.run.ending import CONVERSATIONS, SCORE, Recent
from mtrl_ray.run.tiny_model import ENDING
from mtrl_ray.studies.runs import SECONDS, read_summary
from mtrl_ray.studies.table import Run

SHARES = (0.5, 0.7, 0.9)


def speeds(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per run, in the order of the runs, as JSON values; runs without an expert are left out."""
    return [_speed(run) for run in runs if "expert" in run.scripted]


def reached(metrics: Sequence[Mapping[str, Any]], score: float) -> tuple[int, float] | None:
    """Conversations and seconds until the newest conversations' mean score is at least `score`; None: never."""
    recent = Recent()
    conversations, seconds = 0, 0.0
    for row in metrics:
        conversations += int(row.get(CONVERSATIONS) or 0)
        seconds += row.get(SECONDS) or 0.0
        recent.add(row)
        if recent.mean is not None and recent.mean >= score:
            return conversations, seconds
    return None


def lowest(metrics: Sequence[Mapping[str, Any]]) -> float | None:
    """The lowest mean score of newest conversations (`Recent`) after any iteration; None if there were too few."""
    recent, found = Recent(), []
    for row in metrics:
        recent.add(row)
        if recent.mean is not None:
            found.append(recent.mean)
    return min(found, default=None)


def fallen(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows whose run fell below the interval of its start."""
    return [row for row in rows if row["lowest"] is not None and row["lowest"] < row["start_low"]]


def failing(rows: Sequence[Mapping[str, Any]], least: float) -> list[Mapping[str, Any]]:
    """The rows whose run closed less than this share of the gap."""
    return [row for row in rows if row["gap"] is None or row["gap"] < least]


def _speed(run: Run) -> dict[str, Any]:
    summary, folder = read_summary(run.cell.folder), run.cell.folder
    start, end, expert = (summary[name]["mean"] for name in ("start", "end", "expert"))
    width = expert - start
    crossings = {f"{share:g}": reached(run.metrics, start + share * width) for share in SHARES} if width > 0 else {}
    return {
        **run.cell.values,
        "seed": run.cell.seed,
        "probe": _probe(folder),
        "start": start,
        "start_low": summary["start"]["low"],
        "lowest": lowest(run.metrics),
        "end": end,
        "expert": expert,
        "start_greedy": summary.get("start_greedy", {}).get("mean"),
        "end_greedy": summary.get("end_greedy", {}).get("mean"),
        "gap": (end - start) / width if width > 0 else None,
        "conversations": sum(int(row.get(CONVERSATIONS) or 0) for row in run.metrics),
        "minutes": sum(row.get(SECONDS) or 0.0 for row in run.metrics) / 60,
        "conversations_to": {share: None if found is None else found[0] for share, found in crossings.items()},
        "seconds_to": {share: None if found is None else found[1] for share, found in crossings.items()},
        "area": _area(run.metrics, start, width) if width > 0 else None,
    }


def _area(metrics: Sequence[Mapping[str, Any]], start: float, width: float) -> float | None:
    counted = [row for row in metrics if row.get(SCORE) is not None and row.get(CONVERSATIONS)]
    total = sum(row[CONVERSATIONS] for row in counted)
    return sum((row[SCORE] - start) / width * row[CONVERSATIONS] for row in counted) / total if total else None


def _probe(folder: Path) -> float | None:
    """What the warm start's probe gave at its end; None without one."""
    path = folder / "model" / ENDING
    found: float | None = json.loads(path.read_text()).get("probe") if path.is_file() else None
    return found


def shown(rows: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of the table."""
    counts = [f"{what} to {share:.0%}" for what in ("conversations", "seconds") for share in SHARES]
    heads = [*axes, "seed", "probe", "start", "start, greedy", "lowest", "end", "end, greedy", "gap closed"]
    lines = []
    for row in rows:
        scores = [row[name] for name in ("probe", "start", "start_greedy", "lowest", "end", "end_greedy")]
        to = [row[f"{what}_to"].get(f"{share:g}") for what in ("conversations", "seconds") for share in SHARES]
        lines.append(
            [
                *(str(row[axis]) for axis in axes),
                str(row["seed"]),
                *(_number(score, ".3f") for score in scores),
                _number(row["gap"], ".0%"),
                _number(row["conversations"], ",.0f"),
                _number(row["minutes"], ".1f"),
                _number(row["area"], ".3f"),
                *(_number(value, ",.0f") for value in to),
            ]
        )
    return [*heads, "conversations", "minutes", "area", *counts], lines


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
