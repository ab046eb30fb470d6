"""Workers that join and leave while conversations are held: real workers, real weights, nothing aborted."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from mtrl_ray.commands.scale import scale
from mtrl_ray.dialogue.conversation import from_table
from mtrl_ray.errors import ConfigurationError, EngineError
from mtrl_ray.rollout import requests
from mtrl_ray.rollout.fleet import Fleet
from mtrl_ray.rollout.lease import make_leases
from mtrl_ray.rollout.scaling import Scaling
from mtrl_ray.rollout.worker_pool import Phase
from mtrl_ray.run.recipes import dump, load
from mtrl_ray.settings.tree import WorkerRange
from mtrl_ray.weights.store import read_files, start_store

CONTEXTS = 400


@pytest.fixture(scope="module")
def fleet(ray_cluster: None, blank_sales: Path):
    """A fleet of one to three workers whose engines hold six conversations each."""
    from tests.conftest import QUICK

    settings = load(
        "sales",
        [
            *QUICK,
            f"model.path={blank_sales}",
            "rollout.workers={min: 1, max: 3}",
            "rollout.lease_size=6",
            "rollout.concurrency=6",
            "rollout.response_tokens=24",
        ],
    )
    store = start_store()
    ray.get(store.keep_files.remote(read_files(str(blank_sales))))
    fleet = Fleet(settings, str(blank_sales), store)
    assert len(fleet.wait_ready()) == 1
    yield fleet
    fleet.stop()
    ray.kill(store)


@pytest.fixture
def scaling(fleet: Fleet, tmp_path: Path):
    """What follows demand, and hears requests in a run's folder."""
    fleet.pool.want(1)
    made = Scaling(tmp_path, lambda: fleet, WorkerRange(min=1, max=3))
    yield made
    made.stop()


def hold(fleet: Fleet, iteration: int, at: dict[int, Callable[[], object]]) -> tuple[list[str], list[int]]:
    """Hold conversations, doing something after some results: ids, and who held each chunk."""
    leases = make_leases(0, "train", iteration, range(CONTEXTS))
    held, workers = [], []
    for number, result in enumerate(fleet.rollout(leases, version=0)):
        at.get(number, lambda: None)()
        held += [done.id for done in from_table(ray.get(result.table[0]))]
        workers.append(result.report.worker)
    assert Counter(held) == Counter(lease.id for lease in leases), "each once, none lost"
    return held, workers


def test_workers_join_in_the_middle_of_a_call_and_leave_without_aborting(
    fleet: Fleet, scaling: Scaling, tmp_path: Path
):
    """Asked for by hand; the requests are processed although the driver, this thread, waits for their answers."""

    def wait(workers: int) -> None:
        while fleet.pool.count()[Phase.READY] < workers:
            time.sleep(0.05)

    def ask(workers: int) -> None:
        assert (state := requests.ask(tmp_path, workers)).wanted == workers and state.by == "hand"

    _, workers = hold(fleet, 0, {2: lambda: ask(3), 3: lambda: wait(2), 4: lambda: wait(3), 40: lambda: ask(1)})
    assert set(workers[:3]) == {0} and set(workers) == {0, 1, 2}
    late = Counter(workers[41:])  # those that leave finish what each holds, two chunks, whenever that is
    assert late[1] <= 2 and late[2] <= 2 and late[0] > 10, late
    assert fleet.statistics.deaths == fleet.statistics.dropped == 0 and not fleet.statistics.causes
    assert len(fleet.statistics.joining) == 3 and max(fleet.statistics.joining) < 5, fleet.statistics.joining
    fleet.pool.poll()
    assert fleet.pool.count() == {Phase.READY: 1}


def test_what_was_asked_for_by_hand_holds_until_it_is_given_back(
    fleet: Fleet, scaling: Scaling, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "config.yaml").write_text(dump(load("sales", ["rollout.workers={min: 1, max: 3}"])))
    calm = {"iteration/seconds": 10.0, "q/seconds": 1.0}  # nothing was asked of the rollouts
    fleet.drain_usage()
    scale(tmp_path, "2")
    assert "2 of 1 to 3 workers wanted, by hand; 1 ready, 1 starting" in capsys.readouterr().out
    for _ in range(4):
        assert scaling.follow(calm)["workers/wanted"] == 2 == fleet.pool.wanted
    scale(tmp_path, "auto")
    assert "as demand says" in capsys.readouterr().out
    wanted = [scaling.follow(calm)["workers/wanted"] for _ in range(8)]
    assert wanted[0] == 2 and wanted[-1] == 1 == fleet.pool.wanted
    scale(tmp_path, None)
    assert "1 of 1 to 3 workers wanted, as demand says; 1 ready" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("allowed", "asked", "sentence"),
    [
        ("{min: 1, max: 3}", "4", r"4 workers are outside of what the run .* allows: 1 to 3"),
        ("{min: 1, max: 3}", "0", r"'0' is not a number of workers; give a whole number of at least 1, or auto"),
        ("{min: 1, max: 3}", "many", r"'many' is not a number of workers"),
        ("2", "3", r"has a fixed number of workers, 2; start or resume it with 'rollout.workers="),
    ],
)
def test_what_cannot_be_asked_for_is_one_sentence(scaling: Scaling, tmp_path: Path, allowed, asked, sentence):
    (tmp_path / "config.yaml").write_text(dump(load("sales", [f"rollout.workers={allowed}"])))
    with pytest.raises(ConfigurationError, match=sentence) as raised:
        scale(tmp_path, asked)
    assert "\n" not in str(raised.value) and requests.read_request(tmp_path) is None


def test_a_run_that_is_not_trained_now_says_so(fleet: Fleet, tmp_path: Path):
    with pytest.raises(EngineError, match=r"is not being trained now; start it again with: mtrl train --resume"):
        requests.ask(tmp_path, 1)
    made = Scaling(tmp_path, lambda: fleet, WorkerRange(min=1, max=3))
    state = requests.read_state(tmp_path)
    made.stop()
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    requests.write_state(tmp_path, state)  # as a driver that was killed leaves it, its process living on as this one
    with pytest.raises(EngineError, match="did not answer within 0 s"):
        requests.ask(tmp_path, 1, patience=0.3)
    assert requests.read_request(tmp_path) is None, "nobody obeys it later"
