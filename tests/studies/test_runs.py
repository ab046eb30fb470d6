"""Real runs of a study: cut short, continued, side by side through Ray Tune, failed, changed, replaced."""

import json
import shutil
import traceback
from pathlib import Path

import pytest
import yaml
from ray.exceptions import RayTaskError

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.monitoring.live import LiveView
from mtrl_ray.monitoring.recorder import read_metrics
from mtrl_ray.monitoring.view import Silent
from mtrl_ray.run.folder import prepare
from mtrl_ray.studies import runs
from mtrl_ray.studies.cells import make_cells
from mtrl_ray.studies.definition import read_definition
from mtrl_ray.studies.progress import Progress
from mtrl_ray.studies.runner import Session, run_cells, run_lacking
from mtrl_ray.studies.runs import FAILED, State, check_unchanged, complete, failure, state
from mtrl_ray.studies.writing import Output, write_study


@pytest.fixture
def study(quick: list[str], finished_run: Path, tmp_path: Path):
    """Folder, definition and three cells of one seed: finished; new, and the same but in name; without a model."""
    torn = tmp_path / "torn"
    torn.mkdir()
    overrides = {key: yaml.safe_load(value) for key, value in (text.split("=", 1) for text in quick)}
    # A window of 5 iterations instead of the recipe's 4 is no difference to a run of 2.
    axes = {"run_is": {"finished": {}, "new": {"algorithm.window": 5}, "broken": {"model.path": str(torn)}}}
    tree = {"title": "Real", "recipe": "sales", "seeds": [0], "overrides": overrides, "axes": axes}
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    name, definition = read_definition(str(tmp_path / "real.yaml"))
    cells = make_cells(name, definition, [0], tmp_path / "runs")
    shutil.copytree(finished_run, cells[0].folder)
    return tmp_path, definition, cells


def learned(run: Path) -> list[dict]:
    """What does not depend on a clock, or on conversations that were found in the journal."""
    keys = ("iteration", "q/r", "q/loss", "improve/policy_loss", "improve/entropy", "collect/score_mean")
    return [{key: row[key] for key in keys if key in row} for row in read_metrics(run)]


@pytest.mark.timeout(500)
def test_a_study_is_cut_short_and_continued_side_by_side(study, monkeypatch):
    folder, definition, (finished, new, broken) = study
    said, written = [], []

    def interrupt(self, number, metrics):
        if number == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(LiveView, "iteration", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_lacking([finished, broken, new], Session(said.append, parallel=1, live=False), lambda: written.append(1))
    assert len(written) == 1 and state(broken) is State.FAILED and state(new) is State.BEGUN
    assert (
        failure(broken) == f"model folder {str(folder / 'torn')!r} has no config.json; give a Hugging Face model folder"
    )
    assert said[0].startswith("run 1 of 2: broken-s0") and said[1].startswith("broken-s0 failed after")
    assert [path.name for path in (new.folder / "checkpoints").iterdir()] == ["000001"]

    before = (finished.folder / "summary.json").stat().st_mtime_ns
    failed = run_lacking([finished, new, broken], Session(said.append, parallel=2), lambda: written.append(2))
    assert failed == 1 and written == [1, 2, 2]
    assert [state(cell) for cell in (finished, new, broken)] == [State.FINISHED, State.FINISHED, State.FAILED]
    assert (finished.folder / "summary.json").stat().st_mtime_ns == before, "a finished run is left alone"
    assert learned(new.folder) == learned(finished.folder), "cut short and continued, or not: the same run"
    assert not (new.folder / FAILED).exists() and not (folder / "runs" / ".tune").exists()

    output = Output("real", folder / "out", "mtrl study real.yaml")
    output.check()
    result = write_study(definition, [finished, new, broken], output)
    summary = json.loads((finished.folder / "summary.json").read_text())
    assert [row["run_is"] for row in result["rows"]] == ["finished", "new"]
    for row in result["rows"]:
        assert row["mean"] == pytest.approx(summary["end"]["mean"]) and row["interval"] == "contexts"
        assert (row["low"], row["high"]) == pytest.approx((summary["end"]["low"], summary["end"]["high"]))
    (missing,) = result["missing"]
    assert (missing["run_is"], missing["state"]) == ("broken", "failed") and "config.json" in missing["sentence"]
    assert "run_is=broken, seed=0: failed (model folder" in (folder / "out" / "real.md").read_text()


def test_changed_settings_are_refused_or_replace_the_run(study, finished_run):
    _, _, (finished, _, broken) = study
    check_unchanged([finished])
    shutil.copytree(finished_run, broken.folder)
    assert state(broken) is State.CHANGED
    with pytest.raises(ConfigurationError, match=r"broken-s0' has model.path: .* give --fresh") as raised:
        run_cells([finished, broken], Session(print), lambda: None)
    assert "\n" not in str(raised.value) and (broken.folder / "journal").exists()
    assert not complete(broken, Silent())
    assert not (broken.folder / "journal").exists(), "what the old settings made is gone"
    assert "torn" in (broken.folder / "config.yaml").read_text() and state(broken) is State.FAILED


def test_settings_that_only_say_where_a_run_takes_place_may_differ(study):
    folder, definition, _ = study
    placed = [
        "learner.threads=2",
        "run.keep_checkpoints=1",
        "rollout.cpus=0.2",
    ]
    (cell, *_) = make_cells("real", definition, [0], folder / "runs", placed)
    assert state(cell) is State.FINISHED
    (cell, *_) = make_cells("real", definition, [0], folder / "runs", ["rollout.temperature=0.9"])
    assert state(cell) is State.CHANGED


def test_with_nothing_to_do_no_ray_is_started(study):
    _, _, (finished, *_) = study
    said = []
    assert run_cells([finished], Session(said.append, address="nowhere:1"), lambda: None) == 0
    assert said == ["1 of 1 runs are finished already"]


def test_a_continued_run_has_the_minutes_that_are_left(study, monkeypatch):
    folder, definition, _ = study
    _, cell, _ = make_cells("real", definition, [0], folder / "runs", ["run.minutes=3"])
    prepare(cell.settings, fresh=False, command="mtrl")
    rows = [{"iteration": 1, "iteration/seconds": 30.0}, {"iteration": 2, "iteration/seconds": 60.0}]
    (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    begun = []
    monkeypatch.setattr(runs, "_run", lambda settings, view, resume: begun.append((settings.run.minutes, resume)))
    assert complete(cell, Silent()) and begun == [(pytest.approx(1.5), True)]


def divide(settings, view, resume):
    raise ZeroDivisionError("by nothing")


def divide_in_an_actor(settings, view, resume):
    try:
        divide(settings, view, resume)
    except ZeroDivisionError as error:
        raise RayTaskError("divide", traceback.format_exc(), error).as_instanceof_cause() from None


@pytest.mark.parametrize("run", [divide, divide_in_an_actor])
def test_a_defect_is_one_line_and_keeps_its_traceback(study, monkeypatch, run):
    _, _, (_, new, _) = study
    monkeypatch.setattr(runs, "_run", run)
    assert not complete(new, Silent())
    assert failure(new) == "ZeroDivisionError: by nothing" and "in divide\n" in (new.folder / FAILED).read_text()


def test_time_left(study):
    _, _, (finished, new, broken) = study
    now = [0.0]
    progress = Progress([finished, new, broken], [], 1, lambda line: None, lambda: now[0])
    budget = 60 * new.settings.run.minutes
    assert progress.seconds_left() == 3 * budget, "the budget of minutes, before anything is measured"
    progress.begin(finished)
    now[0] = 100.0
    progress.end(finished, completed=True)
    assert progress.seconds_left() == 200
    progress.begin(new)
    now[0] = 130.0
    assert progress.seconds_left() == 170
    two = Progress([new, broken], [], 2, lambda line: None, lambda: now[0])
    assert two.seconds_left() == budget and two.done == 0
