"""What a driver cannot write is one sentence, and a failure that a run recovers from."""

from pathlib import Path

import pyarrow as pa
import pytest

from mtrl_ray.errors import EngineError
from mtrl_ray.evaluation import holdout, turn_ranks
from mtrl_ray.processes.writing import writing
from mtrl_ray.run.recovery import lost
from mtrl_ray.statistics.estimates import mean_interval
from tests.support.disk import no_file_over

TABLE = pa.table({"text": ["x" * 100]})
WRITTEN = {
    "evaluation/start.parquet": lambda run: holdout.keep(run, "start", TABLE),
    "summary.json": lambda run: holdout.summarise(run, start=mean_interval([0.0, 0.5])),
    "turn_scores/00003.parquet": lambda run: turn_ranks.keep(run, 3, TABLE),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_full_disk_is_recoverable_wherever_the_driver_meets_it(tmp_path: Path, name: str):
    with no_file_over(10), pytest.raises(EngineError) as refused:
        WRITTEN[name](tmp_path)
    said = lost(refused.value)
    assert said.startswith(f"{tmp_path / name} could not be written: ") and said.endswith(
        "free space or give permission"
    )
    WRITTEN[name](tmp_path)
    assert (tmp_path / name).is_file()


def test_no_space_is_said_in_words_and_other_errors_pass(tmp_path: Path):
    with (
        pytest.raises(EngineError, match="/dev/full could not be written: no space is left there"),
        writing(Path("/dev/full")),
    ):
        Path("/dev/full").write_text("x")
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError
