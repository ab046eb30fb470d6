"""Runs as jobs of a cluster that was started beforehand, with the token that Ray asks for."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.processes import ROOT, environment, mtrl, survivors

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class Head:
    """A running cluster: its job server, and what a client's environment needs to talk to it."""

    address: str
    variables: dict[str, str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def of_session(folder: str) -> list[psutil.Process]:
    """Processes whose command line, or environment, names the cluster's own folder."""
    found = []
    for process in psutil.process_iter():
        try:
            named = folder in " ".join(process.cmdline()) or folder in process.environ().get("RAY_TMPDIR", "")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if named and process.pid != os.getpid():
            found += [process, *process.children(recursive=True)]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head` on ports of its own, under a token of its own; exactly its processes are ended."""
    with tempfile.TemporaryDirectory(prefix="mtrl-head-", dir="/tmp") as folder:  # a socket's path has to be short
        variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": folder}
        port, dashboard = free_port(), free_port()
        ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}"]
        ports += [f"--dashboard-agent-listen-port={free_port()}"]
        try:
            subprocess.run(
                [RAY, "start", "--head", "--num-cpus=2", f"--temp-dir={folder}", *ports],
                env=environment(**variables),
                capture_output=True,
                check=True,
                timeout=60,
            )
            yield Head(f"http://127.0.0.1:{dashboard}", variables)
        finally:
            started = of_session(folder)
            for process in started:
                process.kill()
            survivors(started, 10)


HELPER = """
from mtrl_ray.algorithms.iterative_ppo import IterativePPO


class Own(IterativePPO):
    pass
"""
MINE = """
from own_helper import Own  # in the folder above
from mtrl_envs.base import Context, Environment, Outcome, Reply, User


class Counter(User):
    def opening(self):
        return "Go on."

    def reply(self, response):
        self.score = min(response.count("e"), 4) / 4
        return Reply("And?")

    def outcome(self):
        return Outcome(self.score)


class Mine(Environment):
    name, max_turns = "mine", 2

    def context(self, split, index):
        return Context(f"{split}-{index}", split, index, "Write letters.")

    def user(self, context, seed):
        return Counter()

    def well_formed(self, response):
        return response != ""
"""
OWN = ["environment.name=envs.mine:Mine", "algorithm.name=envs.mine:Own"]


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an environment and an algorithm of somebody's own, in a folder `envs` and a file beside it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "envs").mkdir()
    (folder / "envs" / "mine.py").write_text(MINE)
    (folder / "own_helper.py").write_text(HELPER)
    return folder


@pytest.mark.timeout(200)
def test_classes_of_the_current_folder_train_here(quick: list[str], own_folder: Path):
    overrides = [*quick, *OWN, "run.iterations=1", "run.name=here"]
    done = mtrl("train", "sales", *overrides, folder=own_folder)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((own_folder / "runs" / "here" / "summary.json").read_text())
    assert {"start", "end"} <= summary.keys() and not {"expert", "greedy", "random"} & summary.keys()
    assert (own_folder / "runs" / "here" / "report.html").is_file(), "without scripted agents too"


@pytest.mark.timeout(200)
def test_submit_sends_own_classes_along_and_follows_the_jobs_log(
    head: Head, quick: list[str], own_folder: Path, tmp_path: Path
):
    overrides = [*quick, *OWN, "run.iterations=1", "run.name=job", f"run.folder={tmp_path}"]
    done = mtrl("submit", "sales", *overrides, "--address", head.address, folder=own_folder, **head.variables)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("job raysubmit_") and lines[-1] == "SUCCEEDED"
    assert any(line.startswith("iteration 1/1") for line in lines), "the job's log was followed"
    run = tmp_path / "job"
    assert {"start", "end"} <= json.loads((run / "summary.json").read_text()).keys() and (run / "report.html").is_file()
    assert (run / "command.txt").read_text().startswith("mtrl submit sales environment.name=")

    again = mtrl("submit", "sales", *overrides, "--address", head.address, folder=own_folder, **head.variables)
    assert again.returncode == 3 and "ended as FAILED" in again.stderr
    assert "exists; resume it" in again.stdout, "the job's own sentence is in its log"


@pytest.mark.timeout(200)
def test_rays_own_submit_works_too(head: Head, quick: list[str], tmp_path: Path):
    working = tmp_path / "working"
    working.mkdir()
    for name in ("mtrl_ray", "envs", "cluster", "tests"):
        (working / name).symlink_to(ROOT / name)
    train = ["python", "-m", "mtrl_ray", "train", "sales", *quick, "run.iterations=1", f"run.folder={tmp_path}"]
    done = subprocess.run(
        [
            RAY,
            "job",
            "submit",
            "--address",
            head.address,
            "--working-dir",
            str(working),
            "--",
            *train,
            "run.name=plain",
        ],
        env=environment(**head.variables),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "iteration 1/1" in done.stdout and (tmp_path / "plain" / "summary.json").is_file()


def test_an_address_where_nobody_answers_is_one_sentence(tmp_path: Path):
    nobody = f"http://127.0.0.1:{free_port()}"
    done = mtrl("submit", "sales", f"run.folder={tmp_path}", "--address", nobody)
    assert done.returncode == 3 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"mtrl: the job server at '{nobody}' did not take the job: ")


def test_a_server_that_asks_for_a_token_is_explained(head: Head, tmp_path: Path):
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    done = mtrl("submit", "sales", f"run.folder={tmp_path}", "--address", head.address, **variables)
    assert done.returncode == 3 and done.stderr.count("\n") == 1 and "ray get-auth-token" in done.stderr
