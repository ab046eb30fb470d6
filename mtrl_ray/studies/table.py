"""The numbers of a study: means over seeds with intervals, and differences between cells.

1. A run has a score for every held-out context; the contexts are the same in every run. The score of a seed is the mean
   over contexts, `mean` of a cell the mean over its seeds.
2. `low` and `high` are the Student-t interval over seeds, which covers the mean of further training runs on these contexts.
   With three seeds t is 4.3, so it is wide. Use this interval to compare algorithms.
3. `contexts` is the Student-t interval over contexts, with the scores of a context averaged over the seeds.
   Contexts that were made from one source are a cluster (`conversation.sources`). It says where the mean would lie on
   further contexts, with these trained policies. With a single seed it is the only one there is.
4. Differences are paired, by seed and by context: runs of one seed share their start, all runs share their contexts.
5. Only finished runs with the settings of the study count; missing runs are listed.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtrl_ray.dialogue.conversation import sources
from mtrl_ray.evaluation import turn_ranks
from mtrl_ray.monitoring.recorder import read_metrics
from mtrl_ray.statistics.estimates import Estimate, gap_closed, mean_interval, paired_difference
from mtrl_ray.studies.cells import Cell
from mtrl_ray.studies.definition import Definition
from mtrl_ray.studies.runs import SECONDS, SUMMARY, State, read_summary, state

SCRIPTED = ("greedy", "expert")
DIGITS = 12
Scores = dict[str, float]
"""Context → mean score of its conversations."""
Sources = Mapping[str, str]
"""Context and what it was made from; a context that is missing here is its own source."""


@dataclass(frozen=True)
class Run:
    """The data of one finished run."""

    cell: Cell
    start: Scores
    end: Scores
    sources: Sources
    scripted: dict[str, Estimate]
    metrics: list[dict[str, Any]]

    @property
    def last(self) -> dict[str, float]:
        """Metric → its last finite value."""
        return {key: value for row in self.metrics for key, value in row.items() if value is not None}


@dataclass(frozen=True)
class Numbers:
    """A mean over seeds with its interval over seeds and its interval over contexts."""

    seeds: Estimate
    contexts: Estimate

    def as_dict(self) -> dict[str, Any]:
        """`mean`, and `low`, `high` of the interval that `interval` names; `contexts`: that interval's own numbers."""
        by = "seeds" if self.seeds.n > 1 else "contexts"
        chosen = (self.seeds if by == "seeds" else self.contexts).as_dict()
        return {
            "mean": self.seeds.as_dict()["mean"],
            "low": chosen["low"],
            "high": chosen["high"],
            "interval": by,
            "n": chosen["n"],
            "clusters": chosen["clusters"],
            "contexts": self.contexts.as_dict(),
        }


def read_run(cell: Cell) -> Run | None:
    """The data of the cell's run; None if there is no finished run with its settings. Raises DataError for damaged metrics."""
    if state(cell) is not State.FINISHED:
        return None
    summary = read_summary(cell.folder)
    start, end = (_held_out(cell.folder / "evaluation" / f"{name}.parquet") for name in ("start", "end"))
    return Run(
        cell=cell,
        start=_scores(start),
        end=_scores(end),
        sources=dict(zip(end["context_id"].to_pylist(), sources(end), strict=True)),
        scripted={name: Estimate.from_dict(summary[name]) for name in SCRIPTED if name in summary},
        metrics=_with_ranks(read_metrics(cell.folder), cell.folder),
    )


def _with_ranks(metrics: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The recorded metrics, with the rank stability of turns if the run kept turn scores."""
    ranks = _ranks(folder, (folder / SUMMARY).stat().st_mtime_ns)
    return [row | ranks.get(row["iteration"], {}) for row in metrics]


@cache
def _ranks(folder: Path, ended_ns: int) -> dict[int, dict[str, float]]:
    """Cached, because the table is written after each run and each finished run has thousands of rank correlations."""
    return turn_ranks.stability(folder)


def table(definition: Definition, runs: Sequence[Run]) -> dict[str, Any]:
    """`rows` and `differences` of the runs, as JSON values."""
    groups = grouped(runs)
    return {
        "rows": [_row(definition, group) for group in groups],
        "differences": _differences(definition, groups),
    }


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs grouped by cell; seeds in order, cells in order of first occurrence."""
    groups: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[tuple(run.cell.values.values())].append(run)
    return [sorted(group, key=lambda run: run.cell.seed) for group in groups.values()]


def numbers(scores: Sequence[Scores], made_from: Sources) -> Numbers:
    """Of one cell: `scores` of every seed."""
    seeds = [_mean(one) for one in scores]
    contexts = _by_context(scores)
    return Numbers(
        mean_interval(seeds), mean_interval(list(contexts.values()), clusters=_clusters(contexts, made_from))
    )


def difference(first: Sequence[Scores], second: Sequence[Scores], made_from: Sources) -> Numbers:
    """Of first - second, paired: `first[i]` and `second[i]` are of the same seed."""
    seeds = paired_difference([_mean(one) for one in first], [_mean(one) for one in second])
    left, right = _by_context(first), _by_context(second)
    shared = [context for context in left if context in right]
    contexts = paired_difference(
        [left[context] for context in shared],
        [right[context] for context in shared],
        clusters=_clusters(shared, made_from),
    )
    return Numbers(seeds, contexts)


def _row(definition: Definition, group: Sequence[Run]) -> dict[str, Any]:
    made_from = group[0].sources
    start, end = numbers([run.start for run in group], made_from), numbers([run.end for run in group], made_from)
    scripted = group[0].scripted
    row = {**group[0].cell.values, "seeds": len(group), **end.as_dict(), "start": start.as_dict()}
    row["change"] = difference([run.end for run in group], [run.start for run in group], made_from).as_dict()
    row |= {name: estimate.as_dict() for name, estimate in scripted.items()}
    if "expert" in scripted:
        gap = gap_closed(start.contexts, end.contexts, scripted["expert"])
        row["gap"] = None if gap is None else gap.as_dict()
    row["metrics"] = {key: _metric(key, group) for key in definition.metrics}
    row["runs"] = [_of_run(run) for run in group]
    return row


def _of_run(run: Run) -> dict[str, Any]:
    seconds = sum(row.get(SECONDS) or 0.0 for row in run.metrics)
    return {
        "seed": run.cell.seed,
        "start": _mean(run.start),
        "end": _mean(run.end),
        "iterations": run.metrics[-1]["iteration"] if run.metrics else 0,
        "conversations": int(sum(row.get("collect/conversations") or 0 for row in run.metrics)),
        "seconds": seconds,
        "command": run.cell.command,
    }


def _metric(key: str, group: Sequence[Run]) -> dict[str, Any] | None:
    """The mean of the last values of a metric over the seeds that have it."""
    values = [run.last[key] for run in group if key in run.last]
    return mean_interval(values, bounds=None).as_dict() if values else None


def _differences(definition: Definition, groups: Sequence[Sequence[Run]]) -> list[dict[str, Any]]:
    """Differences of every cell from the cell with the baseline's values and otherwise the same, over their common seeds."""
    baseline = definition.baseline
    by_values = {tuple(group[0].cell.values.items()): group for group in groups}
    differences = []
    for group in groups if baseline else ():
        values = group[0].cell.values
        other = by_values.get(tuple({**values, **baseline}.items()))
        if other is None or other is group:
            continue
        ours, theirs = ({run.cell.seed: run.end for run in one} for one in (group, other))
        seeds = [seed for seed in ours if seed in theirs]
        if seeds:
            found = difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds], group[0].sources)
            differences.append({**values, "against": baseline, "seeds": len(seeds), **found.as_dict()})
    return differences


def _held_out(path: Path) -> pa.Table:
    """The conversations of an evaluation, without turns."""
    with pq.ParquetFile(path) as file:
        wanted = ("environment", "split", "context_id", "source", "score")
        return file.read(columns=[name for name in wanted if name in file.schema_arrow.names])


def _clusters(contexts: Iterable[str], made_from: Sources) -> list[str]:
    return [made_from.get(context, context) for context in contexts]


def _scores(held: pa.Table) -> Scores:
    scores = defaultdict(list)
    for context, score in zip(held["context_id"].to_pylist(), held["score"].to_pylist(), strict=True):
        scores[context].append(score)
    return {context: _rounded(values) for context, values in scores.items()}


def _by_context(scores: Sequence[Scores]) -> Scores:
    """Mean over seeds for every context that all seeds have."""
    shared = [context for context in scores[0] if all(context in one for one in scores)]
    return {context: _rounded([one[context] for one in scores]) for context in shared}


def _mean(scores: Mapping[str, float]) -> float:
    return _rounded(list(scores.values()))


def _rounded(values: Sequence[float]) -> float:
    """The mean, rounded so that equal numbers in another order have equal means and ties stay ties."""
    return round(float(np.mean(values)), DIGITS)
