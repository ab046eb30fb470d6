"""Completes the missing runs of a study, sequentially in this process or in parallel through Ray Tune.

1. The study uses one Ray cluster for all runs, because starting one takes as long as several iterations.
2. Finished runs are skipped, begun and failed ones are continued, changed ones are replaced only with `fresh`
   (`mtrl_ray.studies.runs`). This is decided before Ray starts; Ray does not start if there is nothing to do.
3. A run that fails is recorded, and the next one begins.
4. By default, as many runs in parallel as the cluster has CPUs (at least two per run: its engine and its learner work
   in turn), GPUs and memory for.
"""

import gc
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray

from mtrl_ray.monitoring.live import LiveView
from mtrl_ray.processes.session import connected, demand
from mtrl_ray.run.stopping import StopSignal
from mtrl_ray.studies.cells import Cell
from mtrl_ray.studies.progress import Progress, Say
from mtrl_ray.studies.runs import State, check_unchanged, complete, state

CPUS = 2
"""Minimum CPUs per run."""
GIB = 6
"""Memory per run, in GiB: a rollout engine, a learner, a driver, and their share of the object store."""


Ended = Callable[[], None]


@dataclass(frozen=True)
class Session:
    """How to execute the runs. `parallel`: None means as many as the resources allow. `say`: prints progress lines."""

    say: Say
    address: str | None = None
    parallel: int | None = None
    fresh: bool = False
    live: bool = True


def run_cells(cells: Sequence[Cell], session: Session, ended: Ended) -> int:
    """Complete every cell's run, on a new Ray cluster or the one at `session.address`. Returns the number of failed runs.

    `ended` is called after each run. Raises ConfigurationError before the first run if existing runs have other
    settings and `fresh` is not given, EngineError if no Ray cluster answers.
    """
    if not session.fresh:
        check_unchanged(cells)
    lacking = [cell for cell in cells if state(cell) is not State.FINISHED]
    if len(lacking) < len(cells):
        session.say(f"{len(cells) - len(lacking)} of {len(cells)} runs are finished already")
    if not lacking:
        return 0
    largest = max((cell.settings for cell in lacking), key=demand)
    here = max(1, (os.cpu_count() or 1) // _cpus(lacking))
    with connected(largest, session.address, runs=min(session.parallel or here, len(lacking))) as connection:
        if connection.dashboard:
            session.say(f"Ray dashboard: http://{connection.dashboard}")
        if connection.shortage:
            session.say(connection.shortage)
        with StopSignal().listening():  # replaces Ray's handler, which ends the process at once
            return run_lacking(cells, session, ended)


def run_lacking(cells: Sequence[Cell], session: Session, ended: Ended) -> int:
    """`run_cells` if Ray is connected and changed runs can be replaced."""
    finished = [cell for cell in cells if state(cell) is State.FINISHED]
    lacking = [cell for cell in cells if cell not in finished]
    parallel = min(session.parallel or _side_by_side(lacking), len(lacking))
    progress = Progress(lacking, finished, parallel, session.say)
    if parallel > 1:
        from mtrl_ray.studies.parallel import run_side_by_side

        run_side_by_side(lacking, parallel, progress, ended)
    else:
        _one_after_another(lacking, progress, session.live, ended)
    return progress.failed


def _one_after_another(cells: Sequence[Cell], progress: Progress, live: bool, ended: Ended) -> None:
    for cell in cells:
        about = cell.settings.run
        with LiveView(progress.begin(cell), about.iterations, minutes=about.minutes, table=live) as view:
            completed = complete(cell, view)
        gc.collect()  # frees actor handles in the traceback of a failed run, which ends the actors
        progress.end(cell, completed)
        ended()


def _side_by_side(cells: Sequence[Cell]) -> int:
    """Number of these runs that fit on the current cluster at the same time; at least 1."""
    have = ray.cluster_resources()
    room = [have.get("CPU", 0.0) / _cpus(cells), have.get("memory", 0.0) / (GIB * 2**30)]
    gpus = max(demand(cell.settings)[1] for cell in cells)
    if gpus:
        room.append(have.get("GPU", 0.0) / gpus)
    return max(1, math.floor(min(room)))


def _cpus(cells: Sequence[Cell]) -> int:
    return max(CPUS, *(math.ceil(demand(cell.settings)[0]) for cell in cells))
