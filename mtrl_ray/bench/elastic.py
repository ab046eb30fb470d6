"""Nodes that follow demand in one run: `mtrl bench elastic`.

1. A cluster on this machine under Ray's own autoscaler (`mtrl_cluster.local`): one node, up to three. A run on it whose
   `rollout.workers` is 1 to 3, a worker to a node, in a process of its own.
2. Its customers answer at once, then slowly, as those behind a network do, so that the learner waits for conversations;
   once three workers are there they answer at once again.
3. The measurements come from public sources: the cluster's raylets, `fleet.json` and `metrics.jsonl` of the run.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mtrl_cluster.local import LocalCluster, Shape, local_cluster, nodes
from mtrl_envs.base import Context, Outcome, Reply, User
from mtrl_envs.sales.environment import Sales
from mtrl_ray.errors import EngineError
from mtrl_ray.monitoring.recorder import read_metrics
from mtrl_ray.rollout.requests import FleetState, read_state

MOST = 3
SLOW_SECONDS = 1.2
"""For every message of a slow customer."""
PATIENCE_SECONDS = 300.0
"""For each step of the story."""
LOOK_SECONDS = 0.3
STOP_SECONDS = 120.0
CAUSES = ("faults/worker_deaths", "faults/dropped", "faults/errors", "replay/duplicates", "collect/failures")
"""Metrics of conversations that were aborted, lost, or held twice."""
SETTINGS = (
    "environment.name=mtrl_ray.bench.elastic:PacedSales",
    "run.iterations=100000",
    "run.minutes=null",
    f"rollout.workers={{min: 1, max: {MOST}, scale_up_seconds: 4.5}}",
    "rollout.cpus=0.9",
    "rollout.concurrency=2",
    "rollout.lease_size=2",
    "learner.cpus=0.1",
    "algorithm.contexts=12",
    "algorithm.states=12",
    "algorithm.q.epochs=4",
    "evaluation.contexts=8",
)


@dataclass
class Story:
    """Seconds between what happened, the run's metrics, and which rows of them have slow customers from start to end."""

    seconds: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    slow: slice = field(default_factory=lambda: slice(0, 0))

    def figures(self) -> dict[str, Any]:
        """For `--json`."""
        alone, together = (
            [row["iteration/seconds"] for row in self.rows[self.slow] if row["workers/ready"] == workers]
            for workers in (1, MOST)
        )
        joining = [row["workers/joining_seconds"] for row in self.rows if "workers/joining_seconds" in row]
        return {
            **{name: round(value, 2) for name, value in self.seconds.items()},
            "joining_seconds_max": max(joining, default=None),
            "most_workers": max(row["workers/ready"] for row in self.rows),
            "slow_iteration_seconds_with_1": min(alone, default=None),
            f"slow_iteration_seconds_with_{MOST}": min(together, default=None),
            "iterations": len(self.rows),
            "conversations": sum(row["collect/conversations"] for row in self.rows),
            "aborted_lost_or_repeated": sum(max(row[cause] for row in self.rows) for cause in CAUSES),
        }


def bench_elastic(folder: Path, overrides: Sequence[str], say: Callable[[str], None]) -> Story:
    """Run the recipe `sales` in `folder` through these phases. Raises EngineError if a phase does not happen."""
    run, story = folder / "elastic", Story()
    slow = folder / "customers-are-slow"
    options = f"environment.options={json.dumps({'marker': str(slow), 'seconds': SLOW_SECONDS})}"
    given = [*overrides, *SETTINGS, options, f"run.folder={folder}", "run.name=elastic"]
    with local_cluster(Shape(1, MOST, cpus=1, idle_seconds=3.0)) as cluster, (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "mtrl_ray", "train", "sales", *given, "--address", cluster.address]
        driver = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            _tell(story, _Scene(cluster, run, driver, say), slow)
            driver.send_signal(signal.SIGTERM)
            driver.wait(STOP_SECONDS)
        finally:
            driver.kill()
            driver.wait()
    story.rows = read_metrics(run)
    return story


def _tell(story: Story, scene: "_Scene", slow: Path) -> None:
    scene.until("the first iteration", lambda state, there: bool(read_metrics(scene.run)))
    slow.touch()
    begun, first = time.monotonic(), len(read_metrics(scene.run)) + 1
    scene.until(f"{MOST} workers are wanted", lambda state, there: state.wanted == MOST)
    wanted = time.monotonic()
    scene.until(f"{MOST} nodes", lambda state, there: there == MOST)
    story.seconds["slow_users_to_wish"] = wanted - begun
    story.seconds[f"wish_to_{MOST}_nodes"] = time.monotonic() - wanted
    scene.until(f"{MOST} workers", lambda state, there: state.ready == MOST)
    story.seconds[f"wish_to_{MOST}_workers"] = time.monotonic() - wanted
    known = len(read_metrics(scene.run))
    scene.until(f"an iteration with {MOST}", lambda state, there: len(read_metrics(scene.run)) > known + 1)
    story.slow = slice(first, len(read_metrics(scene.run)))
    slow.unlink()
    begun = time.monotonic()
    scene.until("1 worker is wanted", lambda state, there: state.wanted == 1)
    wanted = time.monotonic()
    story.seconds["quick_users_to_wish"] = wanted - begun
    scene.until("1 worker", lambda state, there: state.ready == 1 and not state.leaving)
    story.seconds["wish_to_1_worker"] = time.monotonic() - wanted
    scene.until("1 node", lambda state, there: there == 1)
    story.seconds["wish_to_1_node"] = time.monotonic() - wanted


@dataclass
class _Scene:
    cluster: LocalCluster
    run: Path
    driver: "subprocess.Popen[bytes]"
    say: Callable[[str], None]
    begun: float = field(default_factory=time.monotonic)

    def until(self, what: str, holds: Callable[[FleetState, int], bool]) -> None:
        """Wait for a phase while the run continues."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            state = read_state(self.run)
            there = nodes(self.cluster.mark)
            if state is not None and holds(state, there):
                self.say(f"{time.monotonic() - self.begun:6.1f} s  {what}")
                return
            if self.driver.poll() is not None:
                raise EngineError(f"the run ended before: {what}; its log is {self.run.parent / 'log'}")
            if time.monotonic() > deadline:
                raise EngineError(f"waited {PATIENCE_SECONDS:.0f} s for: {what}; there are {there} node(s), {state}")
            time.sleep(LOOK_SECONDS)


class PacedSales(Sales):
    """`sales`, whose customers in training take `seconds` for every message while the file `marker` exists."""

    def __init__(self, *, marker: str, seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self._marker, self._seconds = Path(marker), seconds

    def user(self, context: Context, seed: int) -> User:
        """See `Sales`."""
        user = super().user(context, seed)
        return _Paced(user, self._seconds) if context.split == "train" and self._marker.exists() else user


class _Paced(User):
    blocking: ClassVar[bool] = True

    def __init__(self, user: User, seconds: float) -> None:
        self._user, self._seconds = user, seconds

    def opening(self) -> str | Reply:
        time.sleep(self._seconds)
        return self._user.opening()

    def reply(self, response: str) -> Reply:
        time.sleep(self._seconds)
        return self._user.reply(response)

    def outcome(self) -> Outcome:
        return self._user.outcome()
