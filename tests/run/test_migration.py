"""A run folder of version 0.1 opens: settings, journal, report. `data/` has four of them, as that version left them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import mtrl_ray
from mtrl_ray.errors import CheckpointError, ConfigurationError
from mtrl_ray.monitoring.report import write_report
from mtrl_ray.replay.journal import Journal
from mtrl_ray.run.folder import resumed_settings, write_settings, written_settings
from mtrl_ray.run.recipes import load

DATA = Path(__file__).parent / "data"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return shutil.copytree(DATA / "ippo", tmp_path / "ippo")


def change(run: Path, section: str, **values: Any) -> None:
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree[section] |= values
    (run / "config.yaml").write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize("name", ["ippo", "itpo", "mtpo", "single"])
def test_settings_of_version_0_1_are_those_of_this_version(tmp_path: Path, name: str, caplog):
    run = shutil.copytree(DATA / name, tmp_path / name)
    settings = resumed_settings(run)
    assert settings.run_folder == run
    write_settings(settings)
    assert yaml.safe_load((run / "config.yaml").read_text())["version"] == mtrl_ray.__version__
    assert resumed_settings(run) == settings
    assert [record.args[1].split()[0] for record in caplog.records][:2] == [
        "monitoring.tensorboard",
        "monitoring.ray_metrics",
    ]


def test_a_number_of_minibatches_becomes_their_size(tmp_path: Path, caplog):
    ippo, single = (resumed_settings(shutil.copytree(DATA / name, tmp_path / name)) for name in ("ippo", "single"))
    assert ippo.algorithm["improvement"]["minibatch_conversations"] == 6
    assert ippo.algorithm["critic"] == "network", "a run goes on with the Q that it began with"
    assert single.algorithm["model"]["first"]["fit"]["minibatch_conversations"] == 1
    assert "minibatches (2 per pass) is now minibatch_conversations (6 per step)" in caplog.text
    with pytest.raises(
        ConfigurationError, match="minibatches is a setting of an earlier version; minibatch_conversations"
    ):
        load("sales", ["algorithm.improvement.minibatches=8"])


def test_its_journal_and_its_report_are_read(old: Path):
    assert Journal(old / "journal").position.rows == 24
    write_report(old)
    assert "mtrl train sales" in (old / "report.html").read_text()


def test_what_had_been_changed_and_is_gone_is_said(old: Path, caplog):
    change(old, "run", recoveries=3)
    change(old, "rollout", kv_cache_gib=2.0)
    assert resumed_settings(old)
    assert "run.recoveries (3) is no setting any more: a run gives up after 20" in caplog.text
    assert "rollout.kv_cache_gib (2.0)" in caplog.text


def test_a_run_that_this_version_cannot_continue_is_refused_with_what_to_do(old: Path):
    change(old, "model", width=64)
    with pytest.raises(CheckpointError, match=r"model.width is 64, and version .*; continue the run with version 0\.1"):
        written_settings(old)
    (old / "config.yaml").write_text("version: 7.2.0\nrun: {}\n")
    with pytest.raises(CheckpointError, match=r"written by mtrl-ray 7\.2\.0, this is 0"):
        written_settings(old)


def test_names_that_changed_are_changed(old: Path):
    change(old, "rollout", workers={"min": 1, "max": 3, "having_seconds": 5.0, "keeping_seconds": 4.0})
    assert resumed_settings(old).rollout.workers.scale_up_seconds == 5.0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.recoveries=3", r"sales: run.recoveries is a setting of an earlier version; leave it out: a run gives up"),
        ("rollout.workers={max: 2, having_seconds: 2}", r"it is called rollout.workers.scale_up_seconds now"),
    ],
)
def test_an_old_name_in_a_recipe_is_refused_with_the_new_one(override: str, said: str):
    with pytest.raises(ConfigurationError, match=said):
        load("sales", [override])
