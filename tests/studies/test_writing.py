"""The page of a study that is not complete."""

from mtrl_ray.studies.runs import State
from mtrl_ray.studies.writing import LISTED, _missing_lines


def missing(count: int, state: State, sentence: str | None = None) -> list[dict[str, object]]:
    return [{"task": "sales", "seed": seed, "state": str(state), "sentence": sentence} for seed in range(count)]


def test_many_runs_that_have_not_begun_are_counted() -> None:
    failed = missing(1, State.FAILED, "no room")
    few = _missing_lines(missing(LISTED, State.NEW) + failed, 20)
    assert few.count("\n") == LISTED and "task=sales, seed=3: new" in few
    many = _missing_lines(missing(LISTED + 1, State.NEW) + failed, 20).splitlines()
    assert many == [
        "- task=sales, seed=0: failed (no room)",
        "- 13 of 20 runs have not begun; the command with `--list` names them",
    ]
