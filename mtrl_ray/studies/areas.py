"""Areas under the learning curves: a mean over all iterations, which says more about a run than its end, and its power.

1. The area of a run is the mean of a metric over the iterations that have it (`Definition.areas`). A cell's is the mean over
   its seeds, with Student's interval over them.
2. Differences from the baseline's cell are paired by seed. `smallest` is the smallest true difference that as many seeds show
   with probability .8 (`statistics.power`), `runs_for` the seeds that a true difference of `EFFECT` would need.
3. The figure has a panel for each combination of the axes other than the lines', and a line for each of its values.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtrl_ray.statistics.drawing import drawing, legend_outside
from mtrl_ray.statistics.estimates import mean_interval, paired_difference
from mtrl_ray.statistics.power import runs_needed, smallest_difference
from mtrl_ray.studies.definition import Definition
from mtrl_ray.studies.table import Run

EFFECT = 0.03
"""The difference that a study should be able to show."""

Row = dict[str, Any]


def areas(definition: Definition, groups: Sequence[Sequence[Run]]) -> list[Row]:
    """A row per metric and cell: its values, `metric`, `seeds`, `mean`, `low`, `high`; beside a baseline `difference`, with
    `smallest` and `runs_for` if there are two seeds."""
    by_values = {tuple(group[0].cell.values.items()): group for group in groups}
    rows = []
    for metric in definition.areas:
        for values, group in by_values.items():
            ours = _of(group, metric)
            if not ours:
                continue
            row = dict(values) | {"metric": metric, "seeds": len(ours)}
            row |= mean_interval(list(ours.values()), bounds=None).as_dict()
            base = by_values.get(tuple({**dict(values), **definition.baseline}.items()))
            rows.append(row | _against(ours, {} if base is None or base is group else _of(base, metric)))
    return rows


def _of(group: Sequence[Run], metric: str) -> dict[int, float]:
    """Seed → area."""
    found = {run.cell.seed: [float(row[metric]) for row in run.metrics if row.get(metric) is not None] for run in group}
    return {seed: float(np.mean(values)) for seed, values in found.items() if values}


def _against(ours: dict[int, float], theirs: dict[int, float]) -> Row:
    shared = [seed for seed in ours if seed in theirs]
    if not shared:
        return {"difference": None}
    left, right = [ours[seed] for seed in shared], [theirs[seed] for seed in shared]
    row: Row = {"difference": paired_difference(left, right, bounds=None).as_dict()}
    if len(shared) > 1:
        differences = [one - other for one, other in zip(left, right, strict=True)]
        row |= {"smallest": smallest_difference(differences), "runs_for": runs_needed(differences, EFFECT)}
    return row


def draw(definition: Definition, metric: str, rows: Sequence[Row]) -> str:
    """The areas of a metric with their intervals, as SVG: the last of the other axes is the horizontal one."""
    axis = definition.line_axis
    *kept, across = [name for name in definition.axes if name != axis] or [axis]
    chosen = [row for row in rows if row["metric"] == metric]
    panels = list(dict.fromkeys(tuple(row[name] for name in kept) for row in chosen))
    with drawing("mtrl study", 4.2 * len(panels) + 1.5, 3.6) as made:
        drawn = made.figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for panel, names in zip(drawn, panels, strict=True):
            _panel(panel, definition, [row for row in chosen if tuple(row[name] for name in kept) == names], across)
            panel.set(
                title=", ".join(f"{name} {value}" for name, value in zip(kept, names, strict=True)), xlabel=across
            )
        drawn[0].set(ylabel=f"area of {metric}")
        legend_outside(made.figure, drawn[0], "right upper")
    return made.svg


def _panel(panel: Any, definition: Definition, rows: Sequence[Row], across: str) -> None:
    axis, places = definition.line_axis, list(definition.axes[across])
    names = [name for name in definition.axes[axis] if any(row[axis] == name for row in rows)]
    for number, name in enumerate(names):
        found = sorted((places.index(row[across]), row) for row in rows if row[axis] == name)
        shift = 0.0 if across == axis else 0.5 * (number / max(len(names) - 1, 1) - 0.5)
        means = [row["mean"] for _, row in found]
        ends = [[row["mean"] - _end(row, "low"), _end(row, "high") - row["mean"]] for _, row in found]
        panel.errorbar(
            [place + shift for place, _ in found], means, np.transpose(ends), fmt="o", markersize=3, label=name
        )
    panel.set_xticks(range(len(places)), places)


def _end(row: Row, key: str) -> float:
    """An end of the interval; the mean if it is not known, as of a single seed."""
    return float(row["mean"] if row[key] is None else row[key])
