"""What a frozen model read is not read again, and never stays when the model or the rows are others."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mtrl_ray.learner.compute.reference_cache import KEPT
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.prm import ImplicitRewards, PRMFit, ScoreTurns
from mtrl_ray.learner.methods.sft import SFT
from mtrl_ray.learner.methods.snapshot import Snapshot
from mtrl_ray.learner.rows.batch import Batch
from mtrl_ray.models.policy import ForwardOptions
from tests.learner.examples import grouped, talk


class Reader:
    """Reads one of a learner's models, and counts the passes over rows that this takes."""

    def __init__(self, learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
        self._core, self.passes = learner.core, 0
        evaluate = learner.core.forward

        def counting(*given, **named):
            self.passes += 1
            return evaluate(*given, **named)

        monkeypatch.setattr(learner.core, "forward", counting)

    def __call__(self, name: str, conversations: pa.Table, temperature: float = 1.0) -> np.ndarray:
        return self._core.evaluate(name, Batch.read(conversations).token_rows, ForwardOptions(temperature))["logprobs"]


@pytest.fixture
def read(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """A reader of the learner."""
    return Reader(learner, monkeypatch)


def test_the_same_rows_are_read_once_and_other_ones_anew(read: Reader, conversations: pa.Table) -> None:
    first, again = read("reference", conversations), read("reference", conversations)
    assert read.passes == 1 and np.array_equal(first, again)
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 0.0
    cooler = read("reference", conversations, temperature=0.5)
    assert read.passes == 2 and not np.allclose(first, cooler)
    assert np.array_equal(read("anchor", conversations), first), "a model of its own, with the same weights"
    assert len(read("reference", conversations.slice(1))) < len(first)
    assert read.passes == 4


def test_models_that_learn_are_read_every_time(learner: Learner, read: Reader, conversations: pa.Table) -> None:
    learner.core.references.keep_initial()
    learner.core.models.copy("prm", "reference")
    for _ in range(2):
        read("policy", conversations)
        read("prm", conversations)
    assert read.passes == 4


def test_the_latest_are_kept(read: Reader) -> None:
    tables = [talk(seed=seed, count=2) for seed in range(KEPT + 1)]
    for table in tables[:KEPT]:
        read("reference", table)
    read("reference", tables[0])
    read("reference", tables[KEPT])  # in place of the one that was used longest ago, the second
    assert read.passes == KEPT + 1
    read("reference", tables[0])
    assert read.passes == KEPT + 1
    read("reference", tables[1])
    assert read.passes == KEPT + 2


def test_a_model_that_was_copied_anew_or_loaded_is_read_anew(
    learner: Learner, read: Reader, conversations: pa.Table, tmp_path: Path
) -> None:
    before = read("anchor", conversations)
    SFT().run(learner.core, conversations)
    Snapshot().run(learner.core)
    after = read("anchor", conversations)
    assert read.passes == 2 and not np.allclose(before, after)
    learner.save(tmp_path)
    learner.load(tmp_path)
    assert np.array_equal(read("anchor", conversations), after) and read.passes == 3


def test_an_iteration_reads_its_reference_once(learner: Learner, read: Reader) -> None:
    talks = grouped(seed=4, contexts=3, samples=4)
    PRMFit().run(learner.core, talks)
    assert read.passes == 2, "the model's predictions before its fit, and the reference"
    ImplicitRewards(0.05).run(learner.core, talks)
    ScoreTurns(0.05).run(learner.core, talks)
    assert read.passes == 4
