"""Win rates between the policies of a study's cells, on the same held-out contexts.

1. The conversations are those of the runs' final evaluations. The environment's oracle, with the run's options, compares
   those of two runs on the same context. Only runs of the same seed are compared.
2. The win rate of a context is its mean preference, that of a seed the mean over contexts, that of a cell the mean over
   seeds; intervals are those of scores (`table`).
3. `rates[b][a]` is `1 - rates[a][b]`; a cell is not compared with itself.
4. Finished runs do not change, so the comparison of two runs is cached.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mtrl_envs.preferences import require_oracle
from mtrl_envs.registry import make
from mtrl_envs.win_rates import context_win_rates
from mtrl_ray.dialogue.conversation import Conversation, from_table
from mtrl_ray.studies.cells import Cell
from mtrl_ray.studies.definition import Definition
from mtrl_ray.studies.table import Run, Scores, numbers

Rates = dict[str, dict[str, dict[str, Any]]]
"""Row → column → `{mean, low, high, …}` of the win rate of the row over the column."""


def win_rates(definition: Definition, runs: Sequence[Run]) -> Rates:
    """Win rates between all values of the study's only axis that have finished runs of the same seed."""
    cells: dict[str, dict[int, Cell]] = {}
    made_from: dict[str, str] = {}
    for run in runs:
        made_from |= run.sources
        (name,) = run.cell.values.values()
        cells.setdefault(name, {})[run.cell.seed] = run.cell
    (axis,) = definition.axes.values()
    rates: Rates = {name: {} for name in axis if name in cells}
    for first, second in combinations(rates, 2):
        seeds = sorted(cells[first].keys() & cells[second].keys())
        if seeds:
            found = [_by_context(cells[first][seed], cells[second][seed]) for seed in seeds]
            rates[first][second] = numbers(found, made_from).as_dict()
            turned = [{context: 1.0 - rate for context, rate in scores.items()} for scores in found]
            rates[second][first] = numbers(turned, made_from).as_dict()
    return rates


def over_start(runs: Sequence[Run]) -> dict[str, Any]:
    """Win rate of a cell's trained policy over its initial policy; `runs`: one per seed."""
    found = []
    for run in runs:
        environment = run.cell.settings.environment
        options = json.dumps(environment.options, sort_keys=True)
        evaluation = run.cell.folder / "evaluation"
        found.append(_compared(evaluation / "end.parquet", evaluation / "start.parquet", environment.name, options))
    return numbers(found, runs[0].sources).as_dict()


def _by_context(first: Cell, second: Cell) -> Scores:
    environment = first.settings.environment
    options = json.dumps(environment.options, sort_keys=True)
    ours, theirs = (cell.folder / "evaluation" / "end.parquet" for cell in (first, second))
    return _compared(ours, theirs, environment.name, options)


@lru_cache(maxsize=4096)
def _compared(first: Path, second: Path, environment: str, options: str) -> Scores:
    prefer = require_oracle(make(environment, **json.loads(options)))
    rates = context_win_rates(_held_out(first), _held_out(second), prefer)
    return {context: rate for (_, context), rate in rates.items()}


@lru_cache(maxsize=64)
def _held_out(path: Path) -> tuple[Conversation, ...]:
    return tuple(from_table(pq.read_table(path)))
