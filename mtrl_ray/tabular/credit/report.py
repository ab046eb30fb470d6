"""The comparison of all schemes on all tasks: numbers, page and figure of `mtrl credit`."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtrl_ray.statistics.drawing import drawing, legend_outside
from mtrl_ray.statistics.estimates import Estimate, mean_interval, paired_difference
from mtrl_ray.statistics.power import smallest_difference
from mtrl_ray.tabular.credit.learning import RATES, Curves, train
from mtrl_ray.tabular.credit.schemes import BETAS, schemes
from mtrl_ray.tabular.credit.task import Task

PAGE, FIGURE = "credit.md", "credit.svg"
TURNS, NOISE, DRAWN = (3, 6, 12), (0.0, 0.3), (False, True)
BASELINE = "outcome"
COLOURS = ("#777777", "#3a8f5c", "#1d4d30", "#d98218", "#8a5210", "#2f6db3", "#c77cb5", "#b3413a", "#6b2622")


@dataclass(frozen=True)
class Row:
    """A scheme on a task, at the step size best for it. `area`: of the curve; `difference`: of areas from the baseline's,
    paired by seed; `smallest`: the least difference that as many seeds show; `pairs`: the process reward model's pair
    accuracy, None without one."""

    task: Task
    scheme: str
    rate: float
    area: Estimate
    end: float
    difference: Estimate
    smallest: float
    pairs: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        task = {"turns": self.task.turns, "noise": self.task.noise, "drawn": self.task.drawn}
        measured = {"area": self.area.as_dict(), "end": self.end, "difference": self.difference.as_dict()}
        return task | {
            "scheme": self.scheme,
            "rate": self.rate,
            **measured,
            "smallest": self.smallest,
            "pairs": self.pairs,
        }


def tasks() -> list[Task]:
    """All of them."""
    return [Task(turns, noise, drawn) for drawn, noise, turns in itertools.product(DRAWN, NOISE, TURNS)]


def compare(seeds: range, iterations: int, begin: Callable[[str], None]) -> list[Row]:
    """Train every scheme on every task. `begin` is told what starts."""
    return [row for task in tasks() for row in _of_task(task, seeds, iterations, begin)]


def _of_task(task: Task, seeds: range, iterations: int, begin: Callable[[str], None]) -> Iterator[Row]:
    begin(task.name)
    trained = {name: train(task, make, seeds, iterations) for name, make in schemes().items()}
    base = _areas(trained[BASELINE])
    for name, curves in trained.items():
        areas = _areas(curves)
        pairs = curves.numbers.get("pair_accuracy")
        yield Row(
            task,
            name,
            RATES[curves.best],
            mean_interval(areas),
            float(curves.right[-1, curves.best].mean()),
            paired_difference(areas, base),
            smallest_difference([ours - theirs for ours, theirs in zip(areas, base, strict=True)]),
            None if pairs is None else float(pairs[curves.best].mean()),
        )


def _areas(curves: Curves) -> list[float]:
    return [float(area) for area in curves.areas[curves.best]]


def write(folder: Path, rows: Sequence[Row], seeds: int, iterations: int, command: str) -> Path:
    """Write page and figure into a folder. Returns the path of the page."""
    draw(rows, folder / FIGURE)
    (folder / PAGE).write_text(page(rows, seeds, iterations, command), encoding="utf-8")
    return folder / PAGE


def best_of(rows: Mapping[str, Row], kind: str) -> Row:
    """The row of a scheme with the β that is best for it."""
    return max((rows[f"{kind}-{beta:g}"] for beta in BETAS), key=lambda row: row.area.mean)


def shown(rows: Sequence[Row]) -> dict[str, Row]:
    """The rows of one task that are drawn: each scheme with its best β."""
    by_name = {row.scheme: row for row in rows}
    plain = {name: row for name, row in by_name.items() if row.pairs is None}
    return plain | {f"{kind}, best β": best_of(by_name, kind) for kind in ("itpo", "norm_itpo", "norm_itpo-own")}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Areas against the number of turns, a panel per noise and kind of outcome."""
    with drawing("mtrl credit", 9.5, 6.6) as made:
        panels = made.figure.subplots(2, 2, sharex=True, sharey=True)
        for panel, (drawn, noise) in zip(panels.flat, itertools.product(DRAWN, NOISE), strict=True):
            chosen = [shown([row for row in rows if row.task == Task(turns, noise, drawn)]) for turns in TURNS]
            for colour, name in zip(COLOURS, chosen[0], strict=True):
                _line(panel, [one[name] for one in chosen], name, colour)
            panel.set(title=f"outcome: {'a draw' if drawn else 'the share'}; noise {noise:g}", xticks=TURNS)
        panels[0, 0].set(ylabel="area under the curve")
        panels[1, 0].set(ylabel="area under the curve", xlabel="turns")
        panels[1, 1].set(xlabel="turns")
        legend_outside(made.figure, panels[0, 0], "right center")
    path.write_text(made.svg)


def _line(panel: Any, rows: Sequence[Row], name: str, colour: str) -> None:
    panel.plot(TURNS, [row.area.mean for row in rows], color=colour, marker="o", markersize=3, label=name)
    panel.fill_between(
        TURNS, [row.area.low for row in rows], [row.area.high for row in rows], color=colour, alpha=0.12, linewidth=0
    )


def page(rows: Sequence[Row], seeds: int, iterations: int, command: str) -> str:
    """The report as Markdown."""
    rates = "one of " + ", ".join(map(str, RATES))
    return f"""# What crediting turns is worth, where the exact credit is known

```
{command}
```

Conversations of 3, 6 or 12 independent turns, a tabular softmax policy shared by all turns, 16 contexts of 8 conversations,
{iterations} iterations, {seeds} seeds, PPO's clipped surrogate on whitened advantages. [theory.md](../theory.md#credit) says
what each scheme does. The area is the mean of the exact probability of a right answer over the iterations, at the step size
that is best for the scheme ({rates}). The difference is from `{BASELINE}`, paired by seed, with its 95 % interval;
`least` is the smallest difference that as many seeds show with probability .8. `pairs` is the process reward model's accuracy
on pairs of conversations that it has not seen.

![Areas against the number of turns]({FIGURE})

{_tables(rows)}"""


def _tables(rows: Sequence[Row]) -> str:
    return "\n".join(f"## {task.name}\n\n{_table([row for row in rows if row.task == task])}\n" for task in tasks())


def _table(rows: Sequence[Row]) -> str:
    head = "| scheme | step | area | end | difference | least | pairs |\n|-|-|-|-|-|-|-|"
    return "\n".join([head, *(_cells(row) for row in rows)])


def _cells(row: Row) -> str:
    difference, is_base = row.difference, row.scheme == BASELINE
    interval = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    cells = (
        f"`{row.scheme}`",
        f"{row.rate:g}",
        f"{row.area.mean:.3f}",
        f"{row.end:.3f}",
        "" if is_base else interval,
        "" if is_base else f"{row.smallest:.3f}",
        "" if row.pairs is None else f"{row.pairs:.2f}",
    )
    return "| " + " | ".join(cells) + " |"
