"""Which processes begin as forks. What becomes of them: `tests/cluster/test_fork_server.py`, `tests/rollout`."""

import json
import os
import subprocess
import sys

import psutil
import ray

from mtrl_ray.processes.preloading import LEARNER, learner_options
from mtrl_ray.rollout.choice import ENGINES, worker_options
from mtrl_ray.settings.tree import LearnerSettings, RolloutSettings
from tests.support.processes import environment


class Process:
    """An actor that says what process it is."""

    def describe(self) -> tuple[int, bool, list[str]]:
        """Its parent, whether it has torch, its command's Python path."""
        return os.getppid(), "torch" in sys.modules, os.environ["PYTHONPATH"].split(os.pathsep)


def test_an_actor_that_is_killed_is_a_fork_again(ray_cluster: None):
    actor = ray.remote(Process).options(
        num_cpus=0, max_restarts=1, max_task_retries=-1, **learner_options(LearnerSettings())
    )
    process = actor.remote()
    parent, has_torch, path = ray.get(process.describe.remote())
    assert has_torch and "mtrl_cluster.fork_server" in psutil.Process(parent).cmdline()
    assert os.path.dirname(os.path.dirname(__file__)) in path
    ray.kill(process, no_restart=False)
    assert ray.get(process.describe.remote()) == (parent, has_torch, path)
    ray.kill(process)


def test_processes_without_a_gpu_are_forks(ray_cluster: None):
    assert learner_options(LearnerSettings()) and worker_options(RolloutSettings())
    assert learner_options(LearnerSettings(gpus=1)) == {} == worker_options(RolloutSettings(gpus=0.5))


def test_a_job_that_says_how_its_processes_start_keeps_to_it(ray_cluster: None):
    @ray.remote(num_cpus=0, runtime_env={"py_executable": sys.executable})
    def options() -> dict:
        return learner_options(LearnerSettings())

    assert ray.get(options.remote()) == {}


def test_what_is_preloaded_can_be_forked():
    modules = ENGINES["vllm"].preload
    assert set(LEARNER) <= set(modules)
    code = (
        "import gc, importlib, json, sys; gc.disable(); from mtrl_cluster.fork_server import is_safe_to_fork\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "unwanted = ('mtrl_ray', 'mtrl_envs', 'ray')\n"
        "print(json.dumps([is_safe_to_fork(), sorted(name for name in sys.modules if name.startswith(unwanted))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *modules],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [True, []]
