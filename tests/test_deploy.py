"""What `deploy/` names exists: gauges of a run, settings of a recipe, files of the image."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from mtrl_ray.monitoring.names import MEANINGS
from mtrl_ray.monitoring.recorder import gauge_name, read_metrics
from mtrl_ray.run.recipes import load

DEPLOY = Path(__file__).parents[1] / "deploy"
GAUGE = re.compile(r"ray_(mtrl_[a-z_]+)")


def test_every_gauge_of_the_dashboard_is_a_metric_of_a_run(finished_run: Path):
    dashboard = json.loads((DEPLOY / "grafana" / "mtrl.json").read_text())
    asked = {name for panel in dashboard["panels"] for t in panel["targets"] for name in GAUGE.findall(t["expr"])}
    asked |= set(GAUGE.findall(dashboard["templating"]["list"][1]["query"]))
    measured = {key for row in read_metrics(finished_run) for key in row} | set(MEANINGS)
    assert len(asked) > 20 and asked <= {gauge_name(key) for key in measured}


def test_the_job_runs_a_recipe_with_settings_that_exist():
    job = yaml.safe_load((DEPLOY / "kuberay" / "rayjob.yaml").read_text())
    program, command, recipe, *overrides = shlex.split(job["spec"]["entrypoint"])
    settings = load(recipe, overrides)
    assert (program, command) == ("mtrl", "train") and settings.rollout.workers == 4
    mounts = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert settings.run.folder in [mount["mountPath"] for mount in mounts]


@pytest.mark.parametrize("chosen", ["cpu", "gpu"])
def test_the_image_takes_a_set_that_exists(chosen):
    text = (DEPLOY / "Dockerfile").read_text()
    assert "requirements/$SET.txt" in text
    assert (DEPLOY.parent / "requirements" / f"{chosen}.txt").is_file()
