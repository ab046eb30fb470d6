"""An algorithm of another package brings its own operation, loss, models and state; all of it survives a checkpoint."""

import json
import shutil
from pathlib import Path

from mtrl_ray.monitoring.recorder import read_metrics
from mtrl_ray.monitoring.view import Silent
from mtrl_ray.run import checkpoint, trainer
from mtrl_ray.run.folder import prepare, resumed_settings, write_settings
from mtrl_ray.run.recipes import load

TREE = {"name": "tests.support.own_algorithm:Own", "median": {"learning_rate": 3e-3}}


def repeatable(folder: Path) -> list[dict[str, float]]:
    learned = ("median/", "improve/", "collect/score")
    return [
        {name: value for name, value in row.items() if name.startswith(learned) and "second" not in name}
        for row in read_metrics(folder)
    ]


def test_what_another_package_brings_works_and_survives_a_checkpoint(
    ray_cluster: None, quick: list[str], tmp_path: Path
):
    mine = [f"run.folder={tmp_path}", "run.name=own", f"algorithm={json.dumps(TREE)}", "evaluation.contexts=2"]
    settings = load("sales", [*quick, *mine, "run.iterations=2"])
    prepare(settings, fresh=False, command="mtrl train")
    trainer.run(settings, Silent())
    run = settings.run_folder
    newest = checkpoint.listed(run / "checkpoints")[-1]
    coefficient = json.loads((newest / checkpoint.STATE).read_text())["algorithm"]["coefficient"]
    assert coefficient != 0.01
    assert (newest / "median" / "value_head.safetensors").is_file() and (newest / "average" / "config.json").is_file()
    rows = repeatable(run)
    assert rows[0]["median/distance"] == 0.0 < rows[1]["median/distance"]
    shutil.copytree(run, tmp_path / "killed")
    shutil.rmtree(checkpoint.listed(tmp_path / "killed" / "checkpoints")[-1])  # as if it had died in iteration 2
    for name in ("own", "killed"):
        again = resumed_settings(tmp_path / name, [f"run.name={name}", "run.iterations=3"])
        write_settings(again)
        trainer.run(again, Silent(), resume=True)
    assert repeatable(tmp_path / "killed") == repeatable(run) and len(repeatable(run)) == 3
    assert repeatable(run)[:2] == rows
