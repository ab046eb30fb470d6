"""SFT in two processes: a model trained on conversations, each step shared by two cores of this machine.

Each process has one thread and computes its share of every step (`compute.collective`); rank 0 saves. A tiny model's steps are
too small for two threads: if threads sleep while they wait for each other (`mtrl_ray`), two of them took 1.2 times as long as
one, and two processes about half.

The number of processes is fixed, and they compute on CPUs even if there are GPUs, so that models from different machines
differ only by rounding. They are separate processes without Ray, because models are also made when no cluster runs, and by
processes whose torch has joined another group.
"""

import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mtrl_ray.errors import EngineError
from mtrl_ray.learner.methods.sft import SFT
from mtrl_ray.learner.methods.warm_start import WarmStart
from mtrl_ray.settings.tree import LearnerSettings

PROCESSES = 2
PARTNER_SECONDS = 120.0
"""Deadline of every sum over the processes, and of their meeting: imports and the model's opening are in it."""
_HOST = "127.0.0.1"


def sft_in_processes(folder: Path, sft: SFT | WarmStart, *tables: pa.Table, seed: int = 0) -> dict[str, float]:
    """Train the model in `folder` on the agent's tokens of encoded conversations; the folder then holds the trained one.

    tables: the operation's. seed: of the order of the conversations. Returns the numbers of the operation.
    Raises EngineError if a process fails, with the last line of its output.
    """
    from mtrl_ray.learner.compute.collective import listen

    meeting = listen(_HOST, PROCESSES, PARTNER_SECONDS)
    with tempfile.TemporaryDirectory(prefix="mtrl-sft-") as scratch:
        task = Path(scratch)
        for number, table in enumerate(tables):
            pq.write_table(table, task / f"{number}.parquet")
        (task / "sft.pickle").write_bytes(pickle.dumps((sft, seed)))
        arguments = [
            sys.executable,
            "-m",
            "mtrl_ray.learner.methods.sft_processes",
            scratch,
            str(folder),
            str(meeting.port),
        ]
        _run([[*arguments, str(rank)] for rank in range(PROCESSES)], task)
        metrics: dict[str, float] = json.loads((task / "metrics.json").read_text())
    return metrics


def _run(commands: Sequence[list[str]], task: Path) -> None:
    """Start the processes and wait for all; if one fails, the others are ended."""
    started = []
    try:
        for rank, command in enumerate(commands):
            with (task / f"{rank}.log").open("wb") as log:
                started.append(subprocess.Popen(command, stdout=log, stderr=log))
        while any(process.poll() is None for process in started):
            if any(process.poll() for process in started):
                break
            time.sleep(0.1)
        for rank, process in enumerate(started):
            if process.poll():
                said = (task / f"{rank}.log").read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise EngineError(
                    f"process {rank} of the warm start ended with status {process.returncode}: {said[-1][:300]}"
                )
    finally:
        for process in started:
            process.kill()
            process.wait()


def _partner(task: Path, folder: Path, port: int, rank: int) -> None:
    """One process."""
    import torch

    from mtrl_ray.learner.compute.collective import connect, join
    from mtrl_ray.learner.learner import Learner

    settings = LearnerSettings(processes=PROCESSES, threads=1)
    store = connect(_HOST, port, PROCESSES, PARTNER_SECONDS)
    group = join(store, rank, PROCESSES, torch.device("cpu"), PARTNER_SECONDS)
    operation, seed = pickle.loads((task / "sft.pickle").read_bytes())
    learner = Learner(settings, folder, collective=group, seed=seed)
    tables = [pq.read_table(path) for path in sorted(task.glob("*.parquet"))]
    _, metrics = operation.run(learner.core, *tables)
    if rank == 0:
        learner.core.models.network.save_pretrained(folder)
        (task / "metrics.json").write_text(json.dumps(metrics))
    group.close()


if __name__ == "__main__":
    _partner(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
