"""Compare runs that are killed at random moments and resumed with an undisturbed run.

1. The reference is run once. Each trial is the same run in a folder of its own, whose driver is killed one to three times,
   each at a moment drawn uniformly over the time that the reference took, and resumed (begun again, if it was killed
   before it had a folder), the last time to its end.
2. Identical means byte for byte: the metrics that the seed decides (`names.repeatable`), every file of the last checkpoint,
   the conversations of the journal, and the summary. Of the checkpoint's metrics those alone, for the others have times;
   and its `state.json` is compared without the history of the run: the number of its recoveries, and of the replay
   buffer the position in the journal, which counts files, and the `events` (doubles, refusals, losses).
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mtrl_cluster.local import LocalCluster, Shape, local_cluster
from mtrl_ray.errors import EngineError
from mtrl_ray.monitoring.names import repeatable
from mtrl_ray.monitoring.recorder import FILE, read_metrics
from mtrl_ray.replay.journal import Journal
from mtrl_ray.run.checkpoint import MANIFEST, STATE, listed
from mtrl_ray.run.folder import CONFIG
from mtrl_ray.settings.tree import Settings

MOST_KILLS = 3
RUN_SECONDS = 3600.0
"""Longest time for one driver."""
LOG = "trials.log"


def identical(
    settings: Settings, command: Sequence[str], trials: int, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """`trials`, how many of them were `identical`, `kills` in all, and what differed (`differences`, by trial).

    `command`: recipe and overrides of `mtrl train`; the runs lie in `run.folder`, named after `run.name`.
    """
    from mtrl_ray.processes.session import demand

    rng, cpus = random.Random(seed), max(1, round(demand(settings)[0] + 0.49))
    with local_cluster(Shape(cpus=cpus)) as cluster:
        reference = _Trial(cluster, settings, command, "reference")
        seconds = reference.run([])
        say(f"undisturbed: {seconds:.0f} s")
        kills, differences = 0, {}
        for number in range(1, trials + 1):
            trial = _Trial(cluster, settings, command, f"trial-{number:03d}")
            while not trial.kills:  # a run may end before it is to be killed
                trial.run([rng.uniform(0.0, seconds) for _ in range(rng.randint(1, MOST_KILLS))])
            kills += trial.kills
            found = different(reference.folder, trial.folder)
            if found:
                differences[trial.folder.name] = found
            say(f"trial {number}: killed {trial.kills} times, {found or 'identical'}")
    same = trials - len(differences)
    return {"trials": trials, "identical": same, "kills": kills, "differences": differences}


def different(one: Path, other: Path) -> str:
    """The first thing in which two runs' results differ; empty if they are identical."""
    for name, of in (
        ("metrics", _metrics),
        ("checkpoint", _checkpoint),
        ("state", _state),
        ("summary", _summary),
        ("journal", _journal),
    ):
        if of(one) != of(other):
            return name
    return ""


def _metrics(run: Path) -> list[str]:
    return [json.dumps({key: row[key] for key in row if repeatable(key)}) for row in read_metrics(run)]


def _checkpoint(run: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((listed(run / "checkpoints")[-1] / MANIFEST).read_text())
    return {name: entry for name, entry in manifest.items() if name not in (STATE, FILE)}


def _state(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((listed(run / "checkpoints")[-1] / STATE).read_text())
    buffer = {name: value for name, value in state["buffer"].items() if name not in ("position", "events")}
    return {name: value for name, value in state.items() if name != "recoveries"} | {"buffer": buffer}


def _summary(run: Path) -> bytes:
    return (run / "summary.json").read_bytes()


def _journal(run: Path) -> list[dict[str, Any]]:
    return Journal(run / "journal").read().sort_by("id").to_pylist()


class _Trial:
    """One run in a folder of its own."""

    def __init__(self, cluster: LocalCluster, settings: Settings, command: Sequence[str], name: str) -> None:
        self._cluster = cluster
        self.folder = settings.run_folder.with_name(f"{settings.run.name}-{name}")
        self._begin = [*command, f"run.name={self.folder.name}", f"run.folder={self.folder.parent}", "--fresh"]
        self.kills = 0

    def run(self, moments: Sequence[float]) -> float:
        """To its end, killed at these many seconds after each start; seconds of the last start."""
        self._drive(self._begin, moments[0] if moments else None)
        for moment in [*moments[1:], None] if moments else []:
            begun = (self.folder / CONFIG).is_file()
            self._drive(["--resume", str(self.folder)] if begun else self._begin, moment)
        return self._seconds

    def _drive(self, arguments: Sequence[str], moment: float | None) -> None:
        started = time.monotonic()
        log = self.folder.with_name(LOG)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as said:
            driver = subprocess.Popen(
                [sys.executable, "-m", "mtrl_ray", "train", *arguments, "--address", self._cluster.address],
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        try:
            code = driver.wait(RUN_SECONDS if moment is None else moment)
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.wait()
            if moment is None:
                raise EngineError(f"{self.folder} did not end within {RUN_SECONDS:.0f} s") from None
            self.kills += 1
            return
        self._seconds = time.monotonic() - started
        if code:
            raise EngineError(f"{self.folder}: the driver ended with code {code}; see {log}")
