"""Conversations and seconds until a run has closed a share of its gap."""

from mtrl_ray.run.ending import CONVERSATIONS, SCORE
from mtrl_ray.studies.runs import SECONDS
from mtrl_ray.studies.speed import failing, fallen, lowest, reached, shown


def row(score: float | None, conversations: int = 32, seconds: float = 2.0) -> dict[str, float | None]:
    return {SCORE: score, CONVERSATIONS: conversations, SECONDS: seconds}


def test_a_score_is_reached_when_the_mean_of_enough_conversations_is() -> None:
    metrics = [row(0.2), row(0.9), row(0.6), row(0.6), row(0.8), row(0.9)]
    assert reached(metrics, 0.7) == (5 * 32, 10.0)
    assert reached(metrics, 0.57) == (4 * 32, 8.0)
    assert reached(metrics, 0.95) is None
    assert reached(metrics[:3], 0.1) is None


def test_an_iteration_without_a_score_still_costs() -> None:
    assert reached([row(0.8), row(None), row(0.8), row(0.8), row(0.8)], 0.8) == (5 * 32, 10.0)


def test_runs_that_close_too_little_fail() -> None:
    rows = [{"gap": 0.71}, {"gap": 0.69}, {"gap": None}]
    assert failing(rows, 0.7) == rows[1:]


def test_a_run_falls_if_many_conversations_in_a_row_score_less_than_its_start() -> None:
    metrics = [row(0.1), row(0.9), row(0.9), row(0.9), row(0.5), row(0.5), row(0.5)]
    assert lowest(metrics) == 0.6, "the last four iterations; a single one does not count"
    assert lowest(metrics[:3]) is None
    rows = [{"lowest": 0.5, "start_low": 0.45}, {"lowest": 0.4, "start_low": 0.45}, {"lowest": None, "start_low": 0.45}]
    assert fallen(rows) == rows[1:2]


def test_a_line_per_run_with_dashes_for_what_was_not_reached() -> None:
    known = {
        "algorithm": "rloo",
        "seed": 3,
        "probe": None,
        "start": 0.5,
        "start_greedy": 0.9,
        "lowest": 0.45,
        "end": 0.8,
        "end_greedy": 0.95,
    }
    counts = {"conversations_to": {"0.5": 640, "0.7": None}, "seconds_to": {"0.5": 20.0, "0.7": None}}
    heads, lines = shown(
        [{**known, **counts, "gap": 0.66, "conversations": 1280, "minutes": 2.0, "area": 0.4}], ["algorithm"]
    )
    found = dict(zip(heads, lines[0], strict=True))
    assert found["conversations to 50%"] == "640" and found["conversations to 70%"] == found["seconds to 90%"] == "–"
    assert found["probe"] == "–" and found["gap closed"] == "66%" and found["start, greedy"] == "0.900"
