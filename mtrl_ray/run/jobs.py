"""Submitting a run as a Ray job and following its log.

- The recipe is resolved and checked here, before anything is sent; the job gets the resolved settings as one file.
- The project's own packages travel with the job. So do the packages of somebody's own environment and algorithm
  (`package.module:ClassName`), and what else was imported from the folder in which they lie. Everything that these need (Ray,
  vLLM, torch, other packages) has to be installed on the cluster, for the `python` that is first on the path of its head node.
- `run.folder` and a model's folder are made absolute here, so a cluster that shares this machine's disk finds them where a
  local run would. For another cluster, give folders that all its nodes see.
"""

import asyncio
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import ray.job_submission
import yaml
from ray.exceptions import RayError

from mtrl_envs.registry import environment_class
from mtrl_ray.algorithms.registry import algorithm_class
from mtrl_ray.errors import EngineError
from mtrl_ray.processes.packages import project_packages
from mtrl_ray.settings.tree import Settings

RECIPE = "recipe.yaml"
INSTALLED = ("site-packages", "dist-packages")
"""Folders of installed packages: what lies beside an own class there does not belong to it."""


def submit(settings: Settings, address: str, fresh: bool, command: str, say: Callable[[str], None]) -> str:
    """Submit the run to a job server (`http://host:8265`) and pass its log on until it ends; the job's final status.

    `command` is what the run keeps as the command that made it. Raises EngineError if the server does not answer,
    refuses, or the job fails.
    """
    resolved = settings.model_dump(mode="json")
    resolved["run"]["folder"] = str(settings.run_folder.parent)
    if Path(settings.model.path).is_dir():
        resolved["model"]["path"] = str(Path(settings.model.path).absolute())
    entrypoint = ["python", "-m", "mtrl_ray", "train", RECIPE, *(["--fresh"] if fresh else []), "--command", command]
    with tempfile.TemporaryDirectory(prefix="mtrl-job-") as folder:
        (Path(folder) / RECIPE).write_text(yaml.safe_dump(resolved, sort_keys=False))
        own = own_modules(settings)
        for file in (path for path in own if path.is_file()):
            shutil.copy(file, folder)
        packages = [*project_packages(), *(path for path in own if path.is_dir())]
        client, job = _send(address, shlex.join(entrypoint), folder, packages)
        say(f"job {job} at {address}")
        asyncio.run(_follow(client, job, say))
    status = client.get_job_status(job)
    if status != ray.job_submission.JobStatus.SUCCEEDED:
        message = client.get_job_info(job).message
        raise EngineError(f"job {job} ended as {status}: {' '.join(str(message).split())[:500]}")
    return str(status)


def own_modules(settings: Settings) -> list[Path]:
    """Files and folders of the top-level modules that the run's own classes, and what they import, lie in."""
    names = (str(settings.environment.name), str(settings.algorithm.get("name")))
    classes = (environment_class(names[0]), algorithm_class(names[1]))
    modules = [name.partition(":")[0] for name in names if ":" in name] + [found.__module__ for found in classes]
    places = {_place(module.partition(".")[0]) for module in modules} - {None, *project_packages()}
    folders = {place.parent for place in places if place is not None and place.parent.name not in INSTALLED}
    beside = {_place(name) for name in list(sys.modules) if "." not in name}
    places |= {place for place in beside if place is not None and place.parent in folders}
    return sorted(place for place in places - {*project_packages()} if place is not None)


def _place(module: str) -> Path | None:
    """The folder of a package, or the file of a module."""
    found = sys.modules.get(module)
    folders = list(getattr(found, "__path__", []))
    file = getattr(found, "__file__", None)
    if folders:
        return Path(folders[0]).absolute()
    return Path(file).absolute() if file is not None and file.endswith(".py") and module != "__main__" else None


def _send(
    address: str, entrypoint: str, folder: str, packages: Sequence[Path]
) -> tuple[ray.job_submission.JobSubmissionClient, str]:
    try:
        client = ray.job_submission.JobSubmissionClient(address)
        job = client.submit_job(
            entrypoint=entrypoint,
            runtime_env={"working_dir": folder, "py_modules": [str(package) for package in packages]},
            metadata={"name": "mtrl train"},
        )
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        advice = (
            "; Ray asks for a token: run `ray get-auth-token --generate` once and set RAY_AUTH_MODE=token for both sides"
            if "401" in str(error) or "auth" in str(error).lower()
            else ""
        )
        raise EngineError(f"the job server at {address!r} did not take the job: {_line(error)}{advice}") from error
    return client, job


async def _follow(client: ray.job_submission.JobSubmissionClient, job: str, say: Callable[[str], None]) -> None:
    async for lines in client.tail_job_logs(job):
        for line in lines.splitlines():
            say(line)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
