"""Paths of the project's own packages, for jobs and worker processes."""

from pathlib import Path

import mtrl_cluster
import mtrl_envs


def project_packages() -> list[Path]:
    """The folders of `mtrl_ray`, `mtrl_envs` and `mtrl_cluster`."""
    return [Path(__file__).parents[1], *(Path(package.__path__[0]) for package in (mtrl_envs, mtrl_cluster))]
