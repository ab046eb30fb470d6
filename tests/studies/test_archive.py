"""Runs that are kept without tokens and checkpoints: the same table, elsewhere."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from mtrl_ray.dialogue.conversation import from_table
from mtrl_ray.studies.archive import archive
from mtrl_ray.studies.cells import make_cells
from mtrl_ray.studies.definition import read_definition
from mtrl_ray.studies.runs import State, state
from mtrl_ray.studies.writing import Output, write_study


def held_out(run: Path) -> list:
    return from_table(pq.read_table(run / "evaluation" / "end.parquet"))


def test_the_table_of_kept_runs_is_the_table_of_the_runs(quick: list[str], finished_run: Path, tmp_path: Path):
    overrides = {key: yaml.safe_load(value) for key, value in (text.split("=", 1) for text in quick)}
    axes = {"window": {"finished": {}, "new": {"algorithm.window": 5}}}
    tree = {"title": "Kept", "recipe": "sales", "seeds": [0], "overrides": overrides, "axes": axes}
    (tmp_path / "kept.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    name, definition = read_definition(str(tmp_path / "kept.yaml"))
    cells = make_cells(name, definition, [0], tmp_path / "runs")
    shutil.copytree(finished_run, cells[0].folder)
    assert archive(cells, tmp_path / "kept") == 1
    elsewhere = make_cells(name, definition, [0], tmp_path / "kept")
    assert [state(cell) for cell in elsewhere] == [State.FINISHED, State.NEW]
    tables = []
    for made, place in ((cells, tmp_path / "here"), (elsewhere, tmp_path / "there")):
        place.mkdir()
        tables.append(write_study(definition, made, Output("table", place, "mtrl study")))
    for table in tables:
        for run in table["rows"][0]["runs"]:
            assert run.pop("command")  # which names the folder
    assert tables[0] == tables[1] and tables[0]["rows"][0]["seeds"] == 1
    assert {path.name for path in elsewhere[0].folder.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "evaluation",
    }
    before, after = held_out(cells[0].folder), held_out(elsewhere[0].folder)
    assert [[turn.text for turn in talk.turns] for talk in after] == [
        [turn.text for turn in talk.turns] for talk in before
    ]
    assert any(turn.tokens for turn in before[0].turns) and not any(
        turn.tokens for talk in after for turn in talk.turns
    )
