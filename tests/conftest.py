"""What the whole test session shares: one Ray cluster, one vLLM engine, the models.

Two processes (`pytest -n 2 --no-loadscope-reorder`, as `make test` runs it) share them too: everything that needs the cluster
or the engine is one group, what starts clusters of its own another, and the other files go to whoever is free. `pytest`
alone runs all in one process.

The Ray cluster is made for two cores, its dashboard off. `blank_sales` has random weights and a real tokenizer, which is
all that exactness needs.
"""

import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("without a clock", deadline=None)
settings.load_profile("without a clock")  # the machine may be busy

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on this machine alone (`mtrl_cluster.loopback`)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads of two processes would wait for each other's cores


OWN_CLUSTERS = ("chaos", "cluster", "end_to_end")
"""Folders whose tests start clusters of their own and mostly wait for them."""


def _group(nodeid: str) -> str:
    """What one process runs in one go."""
    path = nodeid.split("::")[0].removeprefix("tests/")
    if path.split("/")[0] in OWN_CLUSTERS:
        return "0 own clusters"
    return "1 shared" if path in _shared() else path


@cache
def _shared() -> frozenset[str]:
    """Test files, relative to this folder, that use the one cluster or engine themselves or by the conftest beside them.

    By what their text names, for the process that deals the groups out collects nothing. A file that is missed costs another
    cluster, no more.
    """
    root = Path(__file__).parent
    names = re.compile("ray_cluster|finished_run|vllm_engine")
    beside = {path.parent for path in root.glob("*/conftest.py") if names.search(path.read_text())}
    return frozenset(
        str(path.relative_to(root))
        for path in root.rglob("test_*.py")
        if path.parent in beside or names.search(path.read_text())
    )


CLUSTER_OR_ENGINE = {"ray_cluster", "vllm_engine", "finished_run"}
"""Fixtures that start Ray or vLLM."""
STARTS = re.compile(
    r"^\s*(?:import|from) (?:ray|vllm)\b|VllmEngine|\bconnected\("
    r"|\bmake_tiny\(|\bimitate\(|mtrl_ray\.bench|fit-preferences|, \"doctor\"",  # a model's training; every library
    re.MULTILINE,
)
"""What the text of a test file names if its tests start Ray, vLLM or training that takes long."""


@cache
def starts_something(path: Path) -> bool:
    """Whether the text of a test file matches `STARTS`."""
    return bool(STARTS.search(path.read_text()))


def _is_check(item: pytest.Item) -> bool:
    """Whether `make check` runs it."""
    folder = item.nodeid.removeprefix("tests/").split("/")[0]
    needed = set(getattr(item, "fixturenames", ()))
    with_vllm = "vllm" in item.callspec.params.values() if hasattr(item, "callspec") else False
    started = folder in OWN_CLUSTERS or needed & CLUSTER_OR_ENGINE or with_vllm
    return not started and not starts_something(item.path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The two long groups come first; within one, the order stays. What `make check` runs gets the mark `check`."""
    items.sort(key=lambda item: _group(item.nodeid))
    for item in items:
        if _is_check(item):
            item.add_marker("check")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Groups instead of files. (`loadgroup` does not see its marks with this pytest.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Groups(config, log)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster shared by every test that needs one."""
    import ray

    from mtrl_cluster.task_processes import keep

    keep()
    os.environ.pop("LD_PRELOAD", None)  # what vLLM's engine in this process sets for children of its own
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=300 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[Callable[[], str]]:
    """Makes empty buckets of an S3 server on this machine (`tests.support.s3`)."""
    from tests.support.s3 import s3_server

    with s3_server() as bucket:
        yield bucket


@pytest.fixture(scope="session")
def sales_settings():
    """The settings of the recipe `sales`."""
    from mtrl_ray.run.recipes import load

    return load("sales", ["learner.threads=1"])


@pytest.fixture(scope="session")
def blank_sales(tmp_path_factory: pytest.TempPathFactory, sales_settings) -> Path:
    """A model folder for `sales` with random weights."""
    from mtrl_envs.measure import conversations
    from mtrl_envs.registry import make
    from mtrl_ray.models.blank import blank_model

    folder = tmp_path_factory.mktemp("blank-sales")
    blank_model(folder, sales_settings.model, list(conversations(make("sales"), "warm_start", 200, "train")))
    return folder


@pytest.fixture(scope="session")
def vllm_engine(blank_sales: Path, sales_settings):
    """The one vLLM engine in the test process, on `blank_sales`."""
    from mtrl_ray.dialogue.chat import chat_format
    from mtrl_ray.rollout.vllm_engine import VllmEngine

    engine = VllmEngine(
        str(blank_sales), chat_format(str(blank_sales)).stop_ids, sales_settings.rollout, sales_settings.model
    )
    yield engine
    engine.close()


QUICK = [
    "environment.name=tests.support.letters:Letters",
    "rollout.engine=huggingface",
    "rollout.response_tokens=6",
    "rollout.lease_size=64",
    "rollout.cpus=0.1",
    "learner.cpus=0.1",
    "learner.threads=1",
    "evaluation.contexts=8",
    "algorithm.contexts=12",
    "algorithm.states=12",
    "algorithm.responses=2",
    "algorithm.improvement.minibatch_conversations=6",
    "run.checkpoint_every=1",
    "run.iterations=2",
]
"""Overrides of the recipe `sales` for a run of seconds with random weights."""


@pytest.fixture(scope="session")
def quick(blank_sales: Path) -> list[str]:
    """Overrides of the recipe `sales` for a run of seconds: `quick + ["run.name=…", "run.folder=…"]`."""
    return [*QUICK, f"model.path={blank_sales}"]


@pytest.fixture(scope="session")
def finished_run(ray_cluster: None, quick: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two iterations; tests read it, and copy it where they write."""
    from mtrl_ray.monitoring.view import Silent
    from mtrl_ray.run import trainer
    from mtrl_ray.run.folder import prepare
    from mtrl_ray.run.recipes import load

    folder = tmp_path_factory.mktemp("runs")
    settings = load("sales", [*quick, "run.name=finished", f"run.folder={folder}"])
    prepare(settings, fresh=False, command="mtrl train sales run.name=finished")
    trainer.run(settings, Silent())
    return settings.run_folder
