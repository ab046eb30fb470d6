"""The thread that manages a fleet beside the driver: what both change, and what happens if it fails."""

import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from mtrl_ray.commands.scale import scale
from mtrl_ray.errors import ConfigurationError, EngineError
from mtrl_ray.rollout import requests, scaling
from mtrl_ray.rollout.results import Usage
from mtrl_ray.rollout.scaling import Scaling
from mtrl_ray.rollout.worker_pool import Phase
from mtrl_ray.run.recipes import dump, load
from mtrl_ray.settings.tree import WorkerRange

CALM = {"iteration/seconds": 10.0, "q/seconds": 1.0}


class Crew:
    """Stands for a fleet and for its members: nobody works, and each look at it may do something first."""

    def __init__(self) -> None:
        self.pool, self.wanted, self.looks = self, 1, 0
        self.trouble = lambda: None

    def want(self, count: int) -> None:
        self.wanted = count

    def poll(self) -> None:
        self.trouble()

    def count(self) -> Counter[Phase]:
        self.looks += 1
        return Counter({Phase.STARTING: self.looks % 7 + 1})  # never the same twice, so every look is written

    def active(self) -> list[None]:
        return []

    def drain_usage(self) -> Usage:
        return Usage()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "POLL_SECONDS", 0.02)


@pytest.fixture
def crew() -> Crew:
    return Crew()


@pytest.fixture
def made(crew: Crew, tmp_path: Path):
    made = Scaling(tmp_path, lambda: crew, WorkerRange(min=1, max=4))
    yield made
    made.stop()


def test_what_is_asked_by_hand_while_demand_decides_stands(made: Scaling, crew: Crew, tmp_path: Path):
    asking = threading.Thread(target=requests.ask, args=(tmp_path, 2))

    class Slow:
        def wanted(self, load: object, asked: int) -> int:
            asking.start()
            time.sleep(0.5)
            return 4

    made._demand = Slow()
    made.follow(CALM)
    asking.join()
    state = requests.read_state(tmp_path)
    assert (state.by, state.wanted, crew.wanted) == ("hand", 2, 2)
    assert made.follow(CALM)["workers/wanted"] == 2


def test_a_run_is_scaled_from_where_its_environment_is_unknown(
    made: Scaling, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tree = yaml.safe_load(dump(load("sales", ["rollout.workers={min: 1, max: 4}"])))
    tree["environment"] = {"name": "not_installed_here:Shop", "options": {"api_key_env": "NOT_SET_HERE"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    scale(tmp_path, "3")
    assert "3 of 1 to 4 workers wanted, by hand" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match=r"5 workers are outside of what the run .* allows: 1 to 4"):
        scale(tmp_path, "5")


def test_one_at_a_time_writes_how_the_fleet_is(made: Scaling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    writing, beside = [], []

    def slowly(folder: Path, state: requests.FleetState) -> None:
        beside.append(len(writing))
        writing.append(state)
        time.sleep(0.02)
        requests.write_state(folder, state)
        writing.pop()

    monkeypatch.setattr(scaling, "write_state", slowly)
    for _ in range(20):
        made.follow(CALM)
    assert len(beside) > 20 and not any(beside)


def test_a_thread_that_failed_is_said_and_started_again(made: Scaling, crew: Crew, tmp_path: Path):
    def fail() -> None:
        raise OSError("no such folder")

    crew.trouble = fail
    made._thread.join(10)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"manages the rollout workers failed: no such folder"):
            made.follow(CALM)
    crew.trouble = lambda: None
    made.repair()
    assert made.follow(CALM)["workers/wanted"] == 1
    assert requests.ask(tmp_path, 3).wanted == 3, "requests are processed again"
    thread = made._thread
    made.repair()
    assert made._thread is thread, "a running thread is left alone"


def test_a_thread_that_hangs_does_not_keep_a_run_from_ending(made: Scaling, crew: Crew, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "STOP_SECONDS", 0.2)
    hangs, go = threading.Event(), threading.Event()
    crew.trouble = lambda: (hangs.set(), go.wait(60))
    assert hangs.wait(10)
    made.stop()
    assert made._thread.is_alive() and not list(tmp_path.iterdir())
    go.set()
