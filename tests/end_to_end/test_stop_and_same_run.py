"""A stop signal ends a run cleanly; a run whose driver is killed again and again is the undisturbed run."""

import os
import signal
import time
from pathlib import Path

import pytest

from mtrl_ray.chaos.identical import identical
from mtrl_ray.monitoring.recorder import read_metrics
from mtrl_ray.run import checkpoint
from mtrl_ray.run.recipes import load
from tests.support.processes import background, family, survivors, wait_until

AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""Ray's own; they end by themselves a minute after the node they belonged to."""


@pytest.fixture(scope="module")
def settings(quick: list[str]) -> list[str]:
    """Overrides of runs whose chunks are shared by two workers."""
    return [*quick, "rollout.workers=2"]


@pytest.mark.timeout(400)
def test_a_stop_signal_ends_a_run_with_a_checkpoint_of_what_it_has_finished(settings, tmp_path: Path):
    overrides = [
        *settings,
        f"run.folder={tmp_path}",
        "run.name=stopped",
        "run.iterations=1000",
        "run.checkpoint_every=500",
    ]
    driver = background(tmp_path / "log", "train", "sales", *overrides)
    run = tmp_path / "stopped"
    try:
        wait_until(lambda: (run / "metrics.jsonl").is_file() and len(read_metrics(run)) >= 2, 250, driver)
        began, started = time.monotonic(), family(driver.pid)
        driver.send_signal(signal.SIGTERM)
        code = driver.wait(60)
        seconds = time.monotonic() - began
    finally:
        driver.kill()
        driver.wait()
    assert code == 128 + signal.SIGTERM and seconds < 30
    assert set(survivors(started, 15)) <= AGENTS
    said = (tmp_path / "log").read_text()
    done = len(read_metrics(run))
    newest = checkpoint.listed(run / "checkpoints")[-1]
    assert int(newest.name) == done, "written because of the signal"
    assert (
        f"stopped; the checkpoint of iteration {done} is kept" in said and "continue with: mtrl train --resume" in said
    )
    assert checkpoint.read(newest)[1]["iteration"] == done


@pytest.mark.timeout(600)
def test_a_run_killed_at_random_moments_and_resumed_is_byte_for_byte_the_undisturbed_run(settings, tmp_path: Path):
    given = [*settings, f"run.folder={tmp_path}", "run.name=same", "run.iterations=3", "run.checkpoint_every=2"]
    said: list[str] = []
    found = identical(load("sales", given), ["sales", *given], trials=1, seed=5, say=said.append)
    assert found == {"trials": 1, "identical": 1, "kills": found["kills"], "differences": {}}, said
    assert found["kills"] >= 2, said
    rows = read_metrics(tmp_path / "same-trial-001")
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    assert not [name for name in os.listdir(tmp_path / "same-trial-001" / "journal") if name.endswith(".quarantined")]
