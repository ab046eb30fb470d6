"""Learning curves of a study as self-contained SVG files: a thin line per seed and a thick one for their mean.

1. One figure per metric and combination of values of the other axes; one colour per value of the line axis.
2. The mean covers the iterations that every seed has reached; later it would be a mean over fewer runs.
3. A figure contains its title and its legend, and follows the reader's light or dark mode.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

import numpy as np

from mtrl_ray.monitoring.charts import HEIGHT, WIDTH, Line, line_chart
from mtrl_ray.studies.definition import Definition
from mtrl_ray.studies.table import Run, grouped

COLOURS = 8
TITLE, ROW = 26.0, 15.0
PER_ROW = 3
"""Names per row of the legend."""
STYLE = """
svg { --ink: #1c2430; --soft: #5b6675; --rule: #e1e5eb; --page: #ffffff;
  --s1: #2f6bd0; --s2: #c77700; --s3: #0f8a6d; --s4: #8a56c2; --s5: #c2447a; --s6: #6b8e23; --s7: #5d6876; --s8: #a3462f; }
@media (prefers-color-scheme: dark) { svg { --ink: #e4e8ee; --soft: #9aa5b4; --rule: #2c3440; --page: #12161c;
  --s1: #6ea3f5; --s2: #e8a13c; --s3: #3fc3a0; --s4: #b48be6; --s5: #ec7fac; --s6: #a6c563; --s7: #aab3bf; --s8: #e08a74; } }
rect.page { fill: var(--page); }
text { fill: var(--soft); font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
text.title { fill: var(--ink); font-size: 13px; font-weight: 600; }
text.middle { text-anchor: middle; } text.end { text-anchor: end; }
.gridline { stroke: var(--rule); }
.reference { stroke: var(--soft); stroke-dasharray: 4 4; }
path { fill: none; stroke: var(--c); stroke-width: 2.6; stroke-linejoin: round; }
path.thin { stroke-width: 0.9; opacity: 0.55; }
circle { fill: var(--c); } circle.thin, circle.hidden { fill: transparent; }
rect.key { fill: var(--c); }
""" + " ".join(f".s{number} {{ --c: var(--s{number}); }}" for number in range(1, COLOURS + 1))


@dataclass(frozen=True)
class Figure:
    """A figure: file name without extension, description, and SVG content."""

    name: str
    title: str
    svg: str


def figures(definition: Definition, runs: Sequence[Run]) -> list[Figure]:
    """All figures for which the runs have metrics."""
    axis = definition.line_axis
    kept = [other for other in definition.axes if other != axis]
    groups = grouped(runs)
    drawn = []
    for metric, names in itertools.product(
        definition.curves, itertools.product(*(definition.axes[one] for one in kept))
    ):
        where = dict(zip(kept, names, strict=True))
        chosen = [group for group in groups if where.items() <= group[0].cell.values.items()]
        title = ", ".join([metric, *names])
        svg = _figure(definition, chosen, metric, title)
        if svg is not None:
            drawn.append(Figure("-".join([*names, plain(metric)]), title, svg))
    return drawn


def plain(metric: str) -> str:
    """A metric's name in a file's."""
    return re.sub(r"[^A-Za-z0-9]+", "_", metric)


def _figure(definition: Definition, groups: Sequence[Sequence[Run]], metric: str, title: str) -> str | None:
    axis = definition.line_axis
    colours = {name: f"s{number % COLOURS + 1}" for number, name in enumerate(definition.axes[axis])}
    thin, thick = [], []
    for group in groups:
        name = group[0].cell.values[axis]
        series = [found for run in group if (found := _series(run, metric))]
        thin += [_line(f"{name}, seed {run.cell.seed}", _series(run, metric), f"{colours[name]} thin") for run in group]
        if series:
            thick.append(_line(f"{name}, mean of {len(series)}", _average(series), colours[name]))
    lines = [line for line in [*thin, *thick] if line.x]
    if not lines:
        return None
    scores = metric in ("collect/score_mean", "evaluation/mean")
    scripted = groups[0][0].scripted if scores else {}
    references = [(name, estimate.mean) for name, estimate in scripted.items()]
    present = [group[0].cell.values[axis] for group in groups]
    return _alone(title, line_chart(lines, references), [(name, colours[name]) for name in present])


def _alone(title: str, chart: str, legend: Sequence[tuple[str, str]]) -> str:
    """A chart with title, legend and style as a self-contained SVG document."""
    rows = -(-len(legend) // PER_ROW)
    height = TITLE + HEIGHT + ROW * rows + 8
    svg = Element(
        "svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH + 16:g} {height:g}", "role": "img"}
    )
    SubElement(svg, "title").text = title
    SubElement(svg, "style").text = STYLE
    SubElement(svg, "rect", {"width": "100%", "height": "100%", "class": "page"})
    SubElement(svg, "text", {"x": "8", "y": "17", "class": "title"}).text = title
    inner = fromstring(chart)
    for key, value in {"x": 8, "y": TITLE, "width": WIDTH, "height": HEIGHT}.items():
        inner.set(key, f"{value:g}")
    svg.append(inner)
    for place, (name, colour) in enumerate(legend):
        x, y = 52 + (place % PER_ROW) * (WIDTH - 44) / PER_ROW, TITLE + HEIGHT + ROW * (place // PER_ROW) + 4
        SubElement(
            svg,
            "rect",
            {"x": f"{x:g}", "y": f"{y:g}", "width": "10", "height": "10", "rx": "3", "class": f"key {colour}"},
        )
        SubElement(svg, "text", {"x": f"{x + 14:g}", "y": f"{y + 9:g}"}).text = name
    return tostring(svg, encoding="unicode")


def _series(run: Run, metric: str) -> dict[int, float]:
    """Iteration → value of a metric, without missing values."""
    return {row["iteration"]: float(row[metric]) for row in run.metrics if row.get(metric) is not None}


def _average(series: Sequence[dict[int, float]]) -> dict[int, float]:
    shared = sorted(set.intersection(*(set(one) for one in series)))
    return {iteration: float(np.mean([one[iteration] for one in series])) for iteration in shared}


def _line(label: str, series: dict[int, float], colour: str) -> Line:
    return Line(label, list(series), list(series.values()), colour)
