"""Results and counts of the fleet: results of chunks, statistics of a run, usage of a period."""

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa

from mtrl_ray.processes.refs import Ref
from mtrl_ray.rollout.worker import Report


@dataclass(frozen=True)
class Result:
    """A finished chunk: `[ref of its table]` (in a list, so that Ray passes the reference) and its report."""

    table: list[Ref[pa.Table]]
    report: Report


@dataclass
class FleetStatistics:
    """Since a run's first fleet began: deaths of workers, stalled workers (`overdue`), failures by cause, leases dropped.

    `joining`: for each worker that joined, or came back, the seconds from its engine being ready, and work being there, to its
    first chunk.
    """

    deaths: int = 0
    overdue: int = 0
    dropped: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    joining: list[float] = field(default_factory=list)


@dataclass
class Usage:
    """Use of the fleet in a period: seconds in which there was work, most chunks of one call.

    `joining`: as in `FleetStatistics`.
    """

    seconds: float = 0.0
    chunks: int = 0
    joining: list[float] = field(default_factory=list)
