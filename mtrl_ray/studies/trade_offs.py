"""What a cell achieved against what it cost: its score over the last value of a metric, such as the KL to the initial policy.

1. `Definition.against` names the metric. A line is a value of the line axis; its points are the cells along the axis of the
   columns, in the order of the metric. A panel is a combination of the other axes.
2. Bars are the intervals of both numbers over the seeds. With `over_start` a second row of panels has the win rate over the
   initial policy, for preferences that the score does not express.
"""

from collections.abc import Callable, Sequence
from typing import Any

from mtrl_ray.statistics.drawing import drawing, legend_outside
from mtrl_ray.studies.definition import Definition

Row = dict[str, Any]


def draw(definition: Definition, rows: Sequence[Row]) -> str | None:
    """The figure as SVG; None if no row has the metric."""
    metric = definition.against
    known = [row for row in rows if metric is not None and row["metrics"].get(metric) is not None]
    if not known:
        return None
    kept = [axis for axis in definition.axes if axis not in (definition.line_axis, definition.columns)]
    panels = list(dict.fromkeys(tuple(row[axis] for axis in kept) for row in known))
    measured: list[tuple[str, Callable[[Row], Row | None]]] = [("score", lambda row: row)]
    if definition.over_start:
        measured.append(("win rate over start", lambda row: row.get("over_start")))
    with drawing("mtrl study", 3.2 * len(panels) + 1.5, 2.8 * len(measured) + 0.4) as made:
        drawn = made.figure.subplots(len(measured), len(panels), squeeze=False, sharex=True, sharey="row")
        for line, (name, number) in zip(drawn, measured, strict=True):
            for panel, names in zip(line, panels, strict=True):
                chosen = [row for row in known if tuple(row[axis] for axis in kept) == names]
                _panel(panel, definition, chosen, number)
                panel.set_title(", ".join(f"{axis} {value}" for axis, value in zip(kept, names, strict=True)))
            line[0].set_ylabel(name)
        for panel in drawn[-1]:
            panel.set_xlabel(metric)
        legend_outside(made.figure, drawn[0][0], "right upper")
    return made.svg


def _panel(panel: Any, definition: Definition, rows: Sequence[Row], number: Callable[[Row], Row | None]) -> None:
    metric = str(definition.against)
    for name in definition.axes[definition.line_axis]:
        points = [
            (row["metrics"][metric], found)
            for row in rows
            if row[definition.line_axis] == name
            if (found := number(row))
        ]
        points = sorted(((x, y) for x, y in points if y["mean"] is not None), key=lambda point: point[0]["mean"])
        if points:
            xs, ys = zip(*points, strict=True)
            panel.errorbar(
                [x["mean"] for x in xs],
                [y["mean"] for y in ys],
                xerr=_bars(xs),
                yerr=_bars(ys),
                marker="o",
                markersize=3,
                linewidth=1,
                label=name,
            )


def _bars(numbers: Sequence[Row]) -> list[list[float]]:
    """How far the intervals reach down and up; not at all if they are not known, as of a single seed."""
    down = [0.0 if one["low"] is None else one["mean"] - one["low"] for one in numbers]
    up = [0.0 if one["high"] is None else one["high"] - one["mean"] for one in numbers]
    return [down, up]
