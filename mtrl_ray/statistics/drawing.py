"""Figures as SVG, all in one style: the same numbers give the same bytes."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = {"svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.25}


class Drawing:
    """`svg` is the figure's text once it is drawn."""

    def __init__(self, figure: "Figure") -> None:
        self.figure = figure
        self.svg = ""


@contextmanager
def drawing(creator: str, width: float, height: float) -> Iterator[Drawing]:
    """A figure of this size in inches, to draw into; `creator`: the command that makes it."""
    import matplotlib  # only where something is drawn
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": creator}):
        made, text = Drawing(Figure(figsize=(width, height), layout="constrained")), io.StringIO()
        yield made
        for panel in made.figure.axes:
            panel.spines[["top", "right"]].set_visible(False)
        made.figure.savefig(text, format="svg", metadata={"Date": None, "Creator": creator})
    made.svg = text.getvalue()


def legend_outside(figure: "Figure", panel: Any, place: str) -> None:
    """The panel's legend beside all panels; `place`: as matplotlib names it, such as `right upper`."""
    figure.legend(*panel.get_legend_handles_labels(), loc=f"outside {place}", frameon=False, fontsize=8)
