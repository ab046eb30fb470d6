"""In what two runs may differ and still be the same run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtrl_ray.chaos.identical import different
from mtrl_ray.dialogue.conversation import to_table
from mtrl_ray.replay.journal import Journal
from mtrl_ray.run import checkpoint
from tests.replay.making import batch

State = dict[str, Any]


def make(run: Path, change: Callable[[State], object] = lambda state: None) -> Path:
    """What the comparison reads of a run; `change` alters the state of its checkpoint."""
    state: State = {
        "iteration": 1,
        "version": 1,
        "buffer": {"ids": ["a", "b"], "position": 3, "version": 1, "dropped": {}, "events": {}},
        "random": {"python": [3, [1, 2], None]},
        "recoveries": 0,
    }
    change(state)
    run.mkdir()
    (run / "metrics.jsonl").write_text(json.dumps({"iteration": 1, "q/loss": 0.5, "q/seconds": len(run.name)}) + "\n")
    (run / "summary.json").write_text("{}")
    Journal(run / "journal").append(to_table(batch(0)))
    save = lambda folder: (folder / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())  # noqa: E731
    checkpoint.write(run / "checkpoints", 1, state, save, keep=1)
    return run


def test_what_a_run_went_through_and_its_times_make_no_difference(tmp_path: Path) -> None:
    def troubled(state: State) -> None:
        state["recoveries"] = 2
        state["buffer"] |= {"position": 9, "events": {"duplicates": 4}}

    assert different(make(tmp_path / "one"), make(tmp_path / "another", troubled)) == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(version=2),
        lambda state: state.update(random={"python": [3, [1, 5], None]}),
        lambda state: state["buffer"]["ids"].pop(),
        lambda state: state["buffer"]["dropped"].update(staleness=1),
    ],
    ids=["version", "random", "ids", "dropped"],
)
def test_what_the_next_iteration_depends_on_does(tmp_path: Path, change: Callable[[State], object]) -> None:
    assert different(make(tmp_path / "one"), make(tmp_path / "another", change)) == "state"
