"""The files for `ray up`: Ray's own schema takes them, and they hold what a run needs, under a token."""

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILES = sorted((Path(__file__).parents[2] / "cluster" / "up").glob("*.yaml"))
CLOUDS = [path for path in FILES if path.stem != "on_premise"]


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def test_the_common_clouds_and_machines_of_ones_own():
    assert {path.stem for path in FILES} == {"aws", "gcp", "azure", "on_premise"}
    assert {read(path)["provider"]["type"] for path in FILES} == {"aws", "gcp", "azure", "local"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rays_own_schema_takes_the_file_and_no_misspelt_one(path: Path):
    written = read(path)
    complete = prepare_config(copy.deepcopy(written))
    validate_config(complete)
    assert set(written) <= set(complete), "nothing of it is dropped"
    complete["idle_timeout_minuets"] = 5
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuets"):
        validate_config(complete)


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.stem)
def test_node_types_for_learner_and_rollouts_with_bounds(path: Path):
    written = read(path)
    types = written["available_node_types"]
    assert set(types) == {"head", "learner", "rollout_gpu", "rollout_cpu"} and written["head_node_type"] == "head"
    assert {name for name, one in types.items() if one["resources"].get("GPU")} == {"learner", "rollout_gpu"}
    workers = [one for name, one in types.items() if name != "head"]
    assert all(0 <= one["min_workers"] <= one["max_workers"] for one in workers)
    assert written["max_workers"] == sum(one["max_workers"] for one in workers)
    assert types["rollout_gpu"]["min_workers"] == types["rollout_cpu"]["min_workers"] == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_node_has_the_token_and_the_dashboard_stays_on_the_head(path: Path):
    written = read(path)
    starts = [
        command
        for place in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in written[place]
        if "ray start" in command
    ]
    in_image = "-e RAY_AUTH_MODE=token" in written.get("docker", {}).get("run_options", [])
    assert len(starts) == 2 and all(in_image or "RAY_AUTH_MODE=token" in command for command in starts)
    assert any(target.endswith(".ray/auth_token") for target in written["file_mounts"])
    assert "--dashboard-host=127.0.0.1" in starts[0] and "0.0.0.0" not in path.read_text()
    assert written["upscaling_speed"] * 1 >= written["max_workers"], "one round of growing is enough"
