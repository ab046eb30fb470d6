"""A run's folder at its start."""

from pathlib import Path

import pytest

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.run.folder import prepare
from mtrl_ray.run.recipes import load


def test_a_start_that_failed_needs_no_fresh(tmp_path: Path):
    prepare(load("sales", [f"run.folder={tmp_path}"]), fresh=False, command="mtrl train sales")
    (tmp_path / "sales" / "model").mkdir()
    (tmp_path / "sales" / "journal").mkdir()
    prepare(load("sales", [f"run.folder={tmp_path}", "model.layers=3"]), fresh=False, command="again")
    assert not (tmp_path / "sales" / "model").exists(), "it was another model"
    (tmp_path / "sales" / "journal").mkdir()
    (tmp_path / "sales" / "journal" / "a.parquet").touch()
    with pytest.raises(ConfigurationError, match="exists; resume it"):
        prepare(load("sales", [f"run.folder={tmp_path}"]), fresh=False, command="third")
