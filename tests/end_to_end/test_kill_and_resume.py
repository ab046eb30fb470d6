"""A run whose process is killed goes on from its last checkpoint, and no conversation that was kept is held again."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from mtrl_ray.monitoring.recorder import read_metrics
from mtrl_ray.replay.journal import Journal, JournalFile
from mtrl_ray.run import checkpoint
from tests.support.processes import background, family, mtrl, survivors, wait_until

CONTEXTS = 48
AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""Ray's own; they end by themselves a minute after the node they belonged to."""


def journal_files(run: Path) -> list[JournalFile]:
    folder = run / "journal"
    return (
        [file for path in folder.glob("*.parquet") if (file := JournalFile.parse(path.name))] if folder.is_dir() else []
    )


@pytest.fixture
def killed(quick: list[str], tmp_path: Path) -> Path:
    """The folder of a run that was killed in its fourth iteration, after the checkpoint of its second.

    On a slow machine there is one after the first or the third too: an iteration that takes longer than a stop signal would
    wait is kept at once.
    """
    overrides = [
        *quick,
        f"run.folder={tmp_path}",
        "run.name=killed",
        "run.iterations=5",
        "run.checkpoint_every=2",
        f"algorithm.contexts={CONTEXTS}",
        "rollout.workers={min: 1, max: 1}",
        "rollout.lease_size=6",
        "rollout.concurrency=6",
    ]
    driver = background(tmp_path / "log", "train", "sales", *overrides)
    run = tmp_path / "killed"
    started = []
    try:
        wait_until(lambda: any(file.last == 3 for file in journal_files(run)), 150, driver)
        started = family(driver.pid)
        os.kill(driver.pid, signal.SIGKILL)
    finally:
        driver.kill()
        driver.wait()
        left = survivors(started or family(driver.pid), 15)
    assert set(left) <= AGENTS, f"these outlived their driver: {left}"
    return run


@pytest.mark.timeout(400)
def test_a_killed_run_continues_and_loses_nothing(killed: Path):
    before = Journal(killed / "journal").ids()
    assert 3 * CONTEXTS < len(before) < 4 * CONTEXTS, "it was killed in the middle of an iteration"
    kept = [int(path.name) for path in checkpoint.listed(killed / "checkpoints")]
    assert 2 in kept and set(kept) <= {1, 2, 3}
    last = kept[-1]
    assert [row["iteration"] for row in read_metrics(killed)] == [1, 2, 3]
    files = {file.name: (killed / "journal" / file.name).read_bytes() for file in journal_files(killed)}

    done = mtrl("train", "--resume", str(killed))
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"continuing after iteration {last}" in done.stdout and "iteration 5/5" in done.stdout

    journal = Journal(killed / "journal")
    after = journal.ids()
    assert len(after) == len(set(after)) == journal.position.rows == 5 * CONTEXTS
    assert set(before) <= set(after) and not journal.problems
    assert all((killed / "journal" / name).read_bytes() == content for name, content in files.items())
    rows = read_metrics(killed)
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5]
    reused = [int(row["faults/reused"]) for row in rows]
    assert reused == [0] * last + [CONTEXTS] * (3 - last) + [len(before) - 3 * CONTEXTS, 0]
    assert all(row["collect/score_n"] == CONTEXTS for row in rows)
    summary = json.loads((killed / "summary.json").read_text())
    assert {"start", "end", "expert", "greedy"} <= summary.keys()
    assert "held-out contexts" in (killed / "report.html").read_text()
    assert [int(path.name) for path in checkpoint.listed(killed / "checkpoints")] == [4, 5]
    shutil.rmtree(killed)
