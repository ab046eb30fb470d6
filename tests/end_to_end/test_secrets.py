"""A run that uses a key leaves it nowhere: not in its folder, in Ray's logs, in the dashboard, on the terminal."""

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mtrl_cluster.authentication import token_file
from mtrl_ray.monitoring.recorder import read_metrics
from tests.support.endpoint import Endpoint
from tests.support.processes import ROOT, environment, family, survivors

PAGES = (
    "/api/jobs/",
    "/nodes?view=summary",
    "/nodes?view=details",
    "/logical/actors",
    "/api/cluster_status",
    "/api/v0/actors?detail=true&limit=1000",
    "/api/v0/tasks?detail=true&limit=1000",
    "/api/v0/workers?detail=true&limit=1000",
    "/api/v0/runtime_envs?detail=true&limit=1000",
)
"""What the dashboard shows, and what `ray list` reads."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint()
    yield served
    served.close()


def pages(dashboard: str) -> dict[str, bytes]:
    """What the dashboard answers to somebody who has the token."""
    token = os.environ.get("RAY_AUTH_TOKEN") or token_file().read_text().strip()
    found = {}
    for page in PAGES:
        request = urllib.request.Request(dashboard + page, headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                found[page] = answer.read()
        except urllib.error.HTTPError as error:  # what it says then is shown too
            found[page] = error.read()
    return found


def holding(folder: Path, secret: str) -> list[str]:
    """Files that contain the secret."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.timeout(300)
def test_a_key_of_llm_users_is_used_and_left_nowhere(quick: list[str], endpoint: Endpoint, tmp_path: Path):
    key = f"sk-mtrl-{secrets.token_hex(16)}"

    training = threading.Event()

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if training.is_set() and len(endpoint.requests) % 7 == 0:
            return 503, {"error": {"message": f"{key} is over its quota"}}
        return 200, "Hello. [END: left]" if len(body["messages"]) > 3 else "I need a laptop."

    endpoint.answer = answer
    llm = {"base_url": endpoint.url, "model": "person", "api_key_env": "MTRL_TEST_KEY", "retries": 0}
    overrides = [
        *quick,
        "environment.name=sales",
        f"environment.options={json.dumps({'user': 'llm', 'llm': llm})}",
        f"run.folder={tmp_path / 'runs'}",
        "run.iterations=12",
    ]
    with tempfile.TemporaryDirectory(prefix="mtrl-", dir="/tmp", ignore_cleanup_errors=True) as rays:
        variables = environment(MTRL_TEST_KEY=key, RAY_TMPDIR=rays, OPENAI_LOG="debug")
        command = [sys.executable, "-m", "mtrl_ray", "train", "sales", *overrides]
        log = tmp_path / "runs" / "log"
        log.parent.mkdir()
        started: list[psutil.Process] = []
        with log.open("w") as output:
            driver = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=output)
            try:
                while "iteration 1/12" not in log.read_text():
                    assert driver.poll() is None, log.read_text()[-3000:]
                    if "\nrandom: " in log.read_text():
                        training.set()
                    time.sleep(0.2)
                started = family(driver.pid)
                shown = pages(re.search(r"Ray dashboard: (http\S+)", log.read_text())[1])
                assert driver.wait(200) == 0, log.read_text()[-3000:]
            finally:
                driver.kill()
                survivors(started, 10)
        assert f"Bearer {key}" in endpoint.keys, "it was used"
        assert sum(row["faults/errors"] for row in read_metrics(tmp_path / "runs" / "sales")) > 0, "errors were told"
        assert b"RolloutWorker" in shown["/logical/actors"] and (tmp_path / "runs" / "sales" / "report.html").is_file()
        assert not [page for page, content in shown.items() if key.encode() in content]
        assert list(Path(rays).rglob("worker-*.err")), "Ray's logs are there"
        assert not holding(Path(rays), key) and not holding(tmp_path, key)
        token = token_file().read_text().strip()
        assert not holding(Path(rays), token) and not holding(tmp_path, token)
