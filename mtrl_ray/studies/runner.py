"""Runs what a study still lacks: one run after another in this process, or several side by side through Ray Tune.

1. One Ray for the whole study: its start would cost each run as much as several iterations.
2. Runs that are finished are left alone, begun and failed ones continued, changed ones replaced only when told to
   (`mtrl_ray.studies.runs`). All of that is decided before Ray starts; with nothing to do it never does.
3. A run that fails is recorded, and the next one begins.
4. Side by side by default: as many as the cluster has CPUs (two to a run at least: its engine and its learner are busy
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
"""Of a machine, for one run at least."""
GIB = 6
"""Of memory, for one run: a rollout engine, a learner, a driver, and their share of the object store."""


Ended = Callable[[], None]


@dataclass(frozen=True)
class Session:
    """How the runs are made. `parallel`: None, what the resources allow. `say`: takes lines for whoever watches."""

    say: Say
    address: str | None = None
    parallel: int | None = None
    fresh: bool = False
    live: bool = True


def run_cells(cells: Sequence[Cell], session: Session, ended: Ended) -> int:
    """Bring every cell's run to its end, on a Ray of its own or the one at `session.address`; how many runs failed.

    `ended` is called after each. Raises ConfigurationError, before anything starts, where runs were made with other
    settings and `fresh` is not given; EngineError where no Ray cluster answers.
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
        with StopSignal().listening():  # from here on: Ray's own answer, set when it connected, is to end at once
            return run_lacking(cells, session, ended)


def run_lacking(cells: Sequence[Cell], session: Session, ended: Ended) -> int:
    """`run_cells` where Ray is connected and changed runs may be replaced."""
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
        gc.collect()  # what a failed run's traceback held: handles of its actors, which end with them
        progress.end(cell, completed)
        ended()


def _side_by_side(cells: Sequence[Cell]) -> int:
    """How many of these runs the cluster, as it stands, has room for at once; at least 1."""
    have = ray.cluster_resources()
    room = [have.get("CPU", 0.0) / _cpus(cells), have.get("memory", 0.0) / (GIB * 2**30)]
    gpus = max(demand(cell.settings)[1] for cell in cells)
    if gpus:
        room.append(have.get("GPU", 0.0) / gpus)
    return max(1, math.floor(min(room)))


def _cpus(cells: Sequence[Cell]) -> int:
    return max(CPUS, *(math.ceil(demand(cell.settings)[0]) for cell in cells))
