import pytest

from mtrl_ray.bench.learner import bench_learner
from mtrl_ray.bench.learner import talk as bench_talk
from mtrl_ray.learner.rows.tables import Dialogues


def test_the_bench_measures_both_sides_on_the_same_tokens() -> None:
    found = bench_learner(rounds=1, conversations=24, samples=3)
    speeds = found["trained_tokens_per_second"] / found["bare_tokens_per_second"]
    assert found["ratio"] == pytest.approx(speeds)
    assert found["ratio"] > 0.3, "far below what it reaches on a quiet machine"
    assert found["tree_speedup"] > 1.5
    dialogues = Dialogues.read(bench_talk(24, 0))
    assert found["tokens"] == len(dialogues.tokens)
    assert 0.3 < found["loss_share"] < 0.5
