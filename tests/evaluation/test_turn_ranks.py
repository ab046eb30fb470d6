"""How stable the ranks of turns and tokens are over training, on scorings whose ρ is known."""

import math

import pyarrow as pa
import pytest

from mtrl_ray.errors import DataError
from mtrl_ray.evaluation.turn_ranks import EARLY, TOKENS, TURNS, keep, probed, stability


def scores(**conversations: list[list[float]]) -> pa.Table:
    """A scoring: the rewards of each turn's tokens, by conversation."""
    return pa.table(
        {
            "conversation_id": [name for name, turns in conversations.items() for _ in turns],
            "turn": [2 * place + 1 for turns in conversations.values() for place in range(len(turns))],
            "reward": [sum(tokens) for turns in conversations.values() for tokens in turns],
            "token_rewards": [tokens for turns in conversations.values() for tokens in turns],
        }
    )


LAST = scores(a=[[0.1, 0.2], [0.5], [0.9]], b=[[0.3], [0.1, 0.4]])


def test_ranks_are_compared_within_each_conversation(tmp_path):
    keep(tmp_path, 1, scores(a=[[0.0, 0.1], [0.9], [0.5]], b=[[9.0], [8.0, 0.0]]))
    keep(tmp_path, 4, scores(a=[[1.0, 2.0], [5.0], [9.0]], b=[[0.0], [0.0, 0.5]]))
    keep(tmp_path, 12, LAST)
    found = stability(tmp_path)
    # a: ranks 1 3 2 against 1 2 3 are ρ = 1 - 6·2/(3·8) = .5; b: opposite, ρ = -1
    assert found[1][TURNS] == pytest.approx((0.5 - 1) / 2)
    # a: 1 2 4 3 against 1 2 3 4 are 1 - 6·2/(4·15) = .8; b: 3 2 1 against 2 1 3 are 1 - 6·6/(3·8) = -.5
    assert found[1][TOKENS] == pytest.approx((0.8 - 0.5) / 2)
    assert found[4][TURNS] == pytest.approx(1)
    assert found[4][TOKENS] == pytest.approx((1 + math.sqrt(0.75)) / 2), "ties share a rank"
    assert found[12][TURNS] == found[12][TOKENS] == pytest.approx(1)
    assert found[12][TURNS + EARLY] == found[1][TURNS], "the first half of what came before the last scoring"


def test_conversations_without_ranks_are_left_out(tmp_path):
    keep(tmp_path, 1, scores(a=[[0.2], [0.1]], single=[[0.3]], even=[[0.1], [0.1]]))
    keep(tmp_path, 2, scores(a=[[0.1], [0.2]], single=[[0.5]], even=[[0.1], [0.4]]))
    assert stability(tmp_path)[1] == {TURNS: pytest.approx(-1), TOKENS: pytest.approx(-1)}


def test_where_nothing_has_ranks_there_is_no_number(tmp_path):
    for iteration in (1, 2):
        keep(tmp_path, iteration, scores(single=[[0.3 * iteration]]))
    assert stability(tmp_path) == {1: {}, 2: {}}


def test_one_scoring_has_nothing_to_be_compared_with(tmp_path):
    assert stability(tmp_path) == {}
    keep(tmp_path, 1, LAST)
    assert stability(tmp_path) == {}


def test_a_run_without_an_evaluation_is_refused(tmp_path):
    with pytest.raises(DataError, match="turn scores are kept of the first evaluation"):
        probed(tmp_path)
