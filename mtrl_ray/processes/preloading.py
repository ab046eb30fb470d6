"""Workers and learners start with their packages imported: as forks of a process that has them (`mtrl_cluster.fork_server`).

An engine with a small model, and a learner, then cost a sixth of the CPU time to start (docs/faults.md): this makes
restarts cheap.
"""

import os
import shlex
from collections.abc import Sequence
from typing import Any

import ray

from mtrl_ray.processes.packages import project_packages
from mtrl_ray.settings.tree import LearnerSettings

LEARNER = ("pyarrow.parquet", "torch", "transformers.modeling_utils", "peft")
"""Packages, never this project's modules, and nothing that imports Ray (see `mtrl_cluster.fork_server`)."""
VLLM_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Read by vLLM when it is imported; a value that the node's environment has holds."""
OTHER_STARTS = ("pip", "uv", "conda", "container", "image_uri", "py_executable", "nsight", "rocprof_sys")
"""Fields of a runtime environment that say how its processes start."""

# Ray runs the words of `py_executable` in bash. Which Python the node has it says in its raylet's command line alone.
_NODES_PYTHON = (
    "$(tr '\\0' '\\n' < /proc/$RAY_RAYLET_PID/cmdline "
    "| sed -n 's/^--python_worker_command=\\([^ ]*\\) .*/\\1/p' | grep . || echo python)"
)


def learner_options(settings: LearnerSettings) -> dict[str, Any]:
    """Ray's options for a learner, beside its resources."""
    return fork_options(settings.gpus, LEARNER)


def fork_options(gpus: float, modules: Sequence[str]) -> dict[str, Any]:
    """Ray's options for an actor whose process is a fork with these `modules` imported.

    Empty for an actor that takes a GPU, and in a job that configures how its processes start: they start normally.
    """
    inherited = ray.get_runtime_context().runtime_env
    if gpus > 0 or any(inherited.get(field) for field in OTHER_STARTS):
        return {}
    variables = [f"{name}=${{{name}:-{value}}}" for name, value in VLLM_ENVIRONMENT.items()]
    words = ["env", *variables, *_path(), _NODES_PYTHON]
    return {
        "runtime_env": {"py_executable": " ".join([*words, "-m mtrl_cluster.fork_client", ",".join(modules), "--"])}
    }


def _path() -> list[str]:
    """What brings a checkout that is not installed into a process's path; Ray brings the driver's folder into its workers'."""
    folders = (package.parent for package in project_packages())
    roots = [str(root) for root in dict.fromkeys(folders) if root.name not in ("site-packages", "dist-packages")]
    if not roots:  # installed: they have their place, behind Python's own modules
        return []
    return [f'"PYTHONPATH=${{PYTHONPATH:+$PYTHONPATH:}}"{shlex.quote(os.pathsep.join(roots))}']
