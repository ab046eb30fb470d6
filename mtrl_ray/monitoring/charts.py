"""Charts as inline SVG, built as an element tree, so that all text is escaped; coloured by the page's style.

1. A chart is a box of `WIDTH` units that scales with the page. Colours are classes (`s1` … `s6`, `rest`); the
   style sheet has a light and a dark value for each.
2. Every point and bar has a `<title>`, which browsers show as a tooltip.
3. A value of None interrupts the line; a single value between two gaps is drawn as a dot.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element, SubElement, tostring

from mtrl_ray.monitoring.names import shown
from mtrl_ray.statistics.estimates import Estimate

WIDTH, HEIGHT = 340.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 8.0, 8.0, 32.0
MOST_DOTS = 80
"""Points above which a line has no visible dots; at most twice as many points have tooltips."""
MOST_BARS = 60
"""Bars above which neighbouring iterations share a bar."""


@dataclass
class Line:
    """A series over iterations. `band`: (low, high) at each point. `whiskers`: draw the band as error bars instead."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str
    band: Sequence[tuple[float, float] | None] | None = None
    whiskers: bool = False


@dataclass
class Stack:
    """One layer of stacked bars."""

    label: str
    y: Sequence[float]
    colour: str


@dataclass
class Axes:
    """Maps data to the box: x in [x_low, x_high], y in [y_low, y_high]."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    svg: Element = field(default_factory=lambda: _svg(HEIGHT))

    def x(self, value: float) -> float:
        """Horizontal position of a data value; the middle if there is only one."""
        span = self.x_high - self.x_low
        share = 0.5 if span == 0 else (value - self.x_low) / span
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Vertical position of a data value."""
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def frame(self, unit: str = "iteration") -> None:
        """Draw grid lines, tick labels and the name of the horizontal axis."""
        for tick in ticks(self.y_low, self.y_high, 5):
            _line(self.svg, LEFT, self.y(tick), WIDTH - RIGHT, self.y(tick), "gridline")
            _text(self.svg, LEFT - 6, self.y(tick) + 3.5, shown(tick), "tick end")
        for tick in ticks(self.x_low, self.x_high, 6, whole=True):
            _text(self.svg, self.x(tick), HEIGHT - BOTTOM + 14, shown(tick), "tick middle")
        _text(self.svg, WIDTH - RIGHT, HEIGHT - 4, unit, "tick end")


def line_chart(
    lines: Sequence[Line], references: Sequence[tuple[str, float]] = (), bounds: tuple[float, float] | None = None
) -> str:
    """Lines over iterations, with labelled horizontal references; the vertical axis stays within `bounds`."""
    values = [value for line in lines for value in _extent(line)] + [value for _, value in references]
    xs = [x for line in lines for x in line.x]
    axes = Axes(min(xs), max(xs), *_padded(values, bounds))
    axes.frame()
    for line in lines:
        if line.band is not None:
            _whiskers(axes, line) if line.whiskers else _band(axes, line)
        _polylines(axes, line)
    _references(axes, references)
    return tostring(axes.svg, encoding="unicode")


def stacked_chart(x: Sequence[float], stacks: Sequence[Stack]) -> str:
    """Stacked bars per iteration; above `MOST_BARS`, a bar is the mean of neighbouring iterations."""
    size = -(-len(x) // MOST_BARS)
    groups = [range(first, min(first + size, len(x))) for first in range(0, len(x), size)]
    heights = [[sum(stack.y[i] for i in group) / len(group) for stack in stacks] for group in groups]
    top = max(sum(column) for column in heights) or 1.0
    axes = Axes(min(x) - 0.5 * size, min(x) + (len(groups) - 0.5) * size, 0.0, top * 1.05)
    axes.frame()
    width = (WIDTH - LEFT - RIGHT) / len(groups)
    for place, (group, column) in enumerate(zip(groups, heights, strict=True)):
        bar = SubElement(axes.svg, "g")
        span = shown(x[group[0]]) if len(group) == 1 else f"{shown(x[group[0]])}–{shown(x[group[-1]])}"
        parts = [f"{stack.label} {value:.2f} s" for stack, value in zip(stacks, column, strict=True)]
        SubElement(bar, "title").text = f"iteration {span}: " + ", ".join(parts)
        base = 0.0
        for stack, value in zip(stacks, column, strict=True):
            left, upper = LEFT + (place + 0.1) * width, axes.y(base + value)
            _rect(bar, left, upper, 0.8 * width, axes.y(base) - upper, f"bar {stack.colour}")
            base += value
    return tostring(axes.svg, encoding="unicode")


def interval_chart(rows: Sequence[tuple[str, Estimate, str]]) -> str:
    """Horizontal bars from 0 with their intervals: (label, estimate, colour) from top to bottom, scores in [0, 1]."""
    margin, step, bottom = 8.0, 44.0, 44.0 * len(rows) + 4
    svg = _svg(bottom + 20)

    def place(value: float) -> float:
        return margin + min(max(value, 0.0), 1.0) * (WIDTH - 2 * margin)

    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        _line(svg, place(tick), 0, place(tick), bottom, "gridline")
        _text(svg, place(tick), bottom + 15, shown(tick), "tick middle")
    for number, (label, estimate, colour) in enumerate(rows):
        top = number * step
        bar = SubElement(svg, "g")
        SubElement(bar, "title").text = f"{label}: {interval_text(estimate)}, {estimate.size('contexts')}"
        _text(bar, place(0), top + 15, label, "name label")
        _text(bar, place(1), top + 15, interval_text(estimate), "name label end")
        _rect(bar, place(0), top + 21, place(estimate.mean) - place(0), 15, f"bar {colour}")
        _line(bar, place(estimate.low), top + 28.5, place(estimate.high), top + 28.5, "whisker")
        for end in (estimate.low, estimate.high):
            _line(bar, place(end), top + 24.5, place(end), top + 32.5, "whisker")
    return tostring(svg, encoding="unicode")


def sparkline(values: Sequence[float]) -> str:
    """A line of 90 × 18 units without axes."""
    svg = _svg(18, 90.0)
    svg.set("class", "spark")
    low, high = _padded(values, None)
    places = [
        (2 + 86 * index / max(len(values) - 1, 1), 16 - 14 * (value - low) / (high - low))
        for index, value in enumerate(values)
    ]
    _path(svg, places, "line s1")
    SubElement(svg, "circle", {"cx": _n(places[-1][0]), "cy": _n(places[-1][1]), "r": "2", "class": "dot s1"})
    return tostring(svg, encoding="unicode")


def interval_text(estimate: Estimate) -> str:
    """An estimate as text, `0.412 [0.351, 0.474]`, without the interval if it is infinite."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return f"{estimate.mean:.3f}"
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """Round numbers (1, 2, 5 × 10^k) within [low, high], about `count` of them; `whole`: integers only."""
    rough = max(high - low, 1e-12) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        step = max(round(step), 1)
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _svg(height: float, width: float = WIDTH) -> Element:
    return Element("svg", {"viewBox": f"0 0 {_n(width)} {_n(height)}", "role": "img"})


def _extent(line: Line) -> Iterable[float]:
    yield from (value for value in line.y if value is not None)
    for pair in line.band or ():
        yield from pair or ()


def _padded(values: Sequence[float], bounds: tuple[float, float] | None) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    low, high = low - pad, high + pad
    inside = (low, high) if bounds is None else (max(low, bounds[0]), min(high, bounds[1]))
    return inside if inside[0] < inside[1] else (low, high)


def _runs(line: Line) -> list[list[int]]:
    """Indices of consecutive points that have a value."""
    runs: list[list[int]] = [[]]
    for index, value in enumerate(line.y):
        if value is None:
            runs.append([])
        else:
            runs[-1].append(index)
    return [run for run in runs if run]


def _polylines(axes: Axes, line: Line) -> None:
    few = len(line.x) <= MOST_DOTS
    stride = -(-len(line.x) // (2 * MOST_DOTS))
    for run in _runs(line):
        places = [(axes.x(line.x[i]), axes.y(line.y[i] or 0.0)) for i in run]
        if len(places) > 1:
            _path(axes.svg, places, f"line {line.colour}")
        alone = len(run) == 1
        for i, (x, y) in zip(run, places, strict=True):
            if alone or i % stride == 0:
                style = f"dot {line.colour}" if few or alone else "dot hidden"
                dot = SubElement(axes.svg, "circle", {"cx": _n(x), "cy": _n(y), "r": "2.5", "class": style})
                SubElement(dot, "title").text = f"{line.label}, iteration {shown(line.x[i])}: {shown(line.y[i] or 0.0)}"


def _band(axes: Axes, line: Line) -> None:
    for run in _runs(line):
        known = [(line.x[i], pair) for i in run if (pair := (line.band or ())[i]) is not None]
        upper = [(axes.x(x), axes.y(pair[1])) for x, pair in known]
        lower = [(axes.x(x), axes.y(pair[0])) for x, pair in reversed(known)]
        _path(axes.svg, upper + lower, f"band {line.colour}", close=True)


def _whiskers(axes: Axes, line: Line) -> None:
    for x, pair in zip(line.x, line.band or (), strict=True):
        if pair is not None:
            _line(axes.svg, axes.x(x), axes.y(pair[0]), axes.x(x), axes.y(pair[1]), f"line {line.colour}")


def _references(axes: Axes, references: Sequence[tuple[str, float]]) -> None:
    for label, value in references:
        _line(axes.svg, LEFT, axes.y(value), WIDTH - RIGHT, axes.y(value), "reference")
        _text(axes.svg, LEFT + 3, axes.y(value) - 3, f"{label} {value:.2f}", "tick label")


def _path(parent: Element, places: Sequence[tuple[float, float]], style: str, close: bool = False) -> None:
    if places:
        course = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in places) + ("Z" if close else "")
        SubElement(parent, "path", {"d": course, "class": style})


def _line(parent: Element, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
    SubElement(parent, "line", {"x1": _n(x1), "y1": _n(y1), "x2": _n(x2), "y2": _n(y2), "class": style})


def _rect(parent: Element, x: float, y: float, width: float, height: float, style: str) -> None:
    place = {"x": _n(x), "y": _n(y), "width": _n(max(width, 0.0)), "height": _n(max(height, 0.0))}
    SubElement(parent, "rect", {**place, "class": style})


def _text(parent: Element, x: float, y: float, content: str, style: str) -> None:
    SubElement(parent, "text", {"x": _n(x), "y": _n(y), "class": style}).text = content


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
