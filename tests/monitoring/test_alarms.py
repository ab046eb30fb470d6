"""Alarms begin, are said once, end, and may begin again."""

import math

import pytest

from mtrl_ray.monitoring.alarms import Alarms


def said(*iterations: dict[str, float | None]) -> list[tuple[int, str]]:
    return Alarms(enumerate(iterations, start=1)).said


def cut(*shares: float) -> list[dict[str, float | None]]:
    return [{"collect/truncated": share} for share in shares]


def test_answers_that_grow_are_told_when_they_begin_to():
    alarms = said(*cut(0.05, 0.2, 0.21, 0.5, 0.1, 0.3))
    assert [iteration for iteration, _ in alarms] == [3, 6]
    assert alarms[0][1].startswith("21% of the agent's answers are cut at the token limit, 5% in the first iteration")


@pytest.mark.parametrize("shares", [(0.3, 0.5, 0.59), (0.0, 0.2), (0.11, 0.21)])
def test_answers_that_are_long_from_the_start_are_no_alarm(shares):
    assert not said(*cut(*shares))


@pytest.mark.parametrize(
    ("score", "mean", "sentence"),
    [
        (0.65, 0.5, "0.650, is 0.150 above the mean return, 0.500"),
        (0.30, 0.5, "0.300, is 0.200 below the mean return, 0.500"),
        (0.16, 0.04, "0.120 above"),
        (0.60, 0.5, None),
        (24.0, 20.0, None),
        (26.0, 20.0, "6.000 above"),
        (-2.0, -1.0, "1.000 below"),
        (math.nan, 0.5, None),
    ],
)
def test_a_q_that_promises_what_does_not_come(score, mean, sentence):
    alarms = said({"improve/score": score, "q/return": mean})
    assert bool(alarms) == (sentence is not None)
    assert sentence is None or sentence in alarms[0][1]


def test_an_iteration_without_a_number_neither_begins_nor_ends_an_alarm():
    low, high = {"ranking/gain": -0.1, "ranking/gain_high": -0.02}, {"ranking/gain": 0.1, "ranking/gain_high": 0.2}
    alarms = said({}, low, {"q/r": 0.5}, low, high, low)
    assert [iteration for iteration, _ in alarms] == [2, 6]
    assert "scores 0.100 less than the mean of its state" in alarms[0][1]


def test_nothing_to_choose_from():
    [(iteration, sentence)] = said({"respond/alike": 0.5}, {"respond/alike": None}, {"respond/alike": 0.95})
    assert iteration == 3 and sentence.startswith("in 95% of the states all sampled answers are alike")


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped():
    shares = cut(0.05, 0.3, 0.3, 0.1, 0.3)
    whole, resumed = Alarms(), Alarms(enumerate(shares[:3], start=1))
    told = [whole.hear(number, one) for number, one in enumerate(shares, start=1)]
    assert [resumed.hear(number, shares[number - 1]) for number in (4, 5)] == told[3:]
    assert [bool(one) for one in told] == [False, True, False, False, True]
