"""Which answers are continued, how many, and what is made of their outcomes."""

import numpy as np
import pyarrow as pa
import pytest

from mtrl_ray.dialogue.conversation import Conversation, Finish, Role, StopReason, Turn, to_table
from mtrl_ray.evaluation.answer_ranks import MOST_ITERATIONS, REPEATS, STATES, measurements, rank
from mtrl_ray.evaluation.answers import choose
from tests.system.test_tables import responses


def sampled(states: int, kinds: int, samples: int = 4) -> pa.Table:
    """Every second state has answers of `kinds` kinds, the others one."""
    rows = []
    for state in range(states):
        several = kinds if state % 2 else 1
        rows += [
            (f"t{state // 3}", 1 + 2 * (state % 3), [state, sample % several], Finish.STOP) for sample in range(samples)
        ]
    return responses(*rows)


def test_only_answers_that_differ_are_chosen_and_whole_states_of_them():
    chosen = choose(sampled(40, 2), answers=13, seed=3)
    states = list(zip(chosen["conversation_id"].to_pylist(), chosen["turn"].to_pylist(), strict=True))
    assert len(states) == 12 and all(states.count(state) == 2 for state in states)
    assert all(tokens[0] % 2 for tokens in chosen["tokens"].to_pylist())
    assert len({tuple(tokens) for tokens in chosen["tokens"].to_pylist()}) == 12
    assert choose(sampled(40, 2), 13, 3) == chosen != choose(sampled(40, 2), 13, 4)
    assert choose(sampled(40, 2), answers=1, seed=0).num_rows == 2, "one state at the least"
    assert choose(sampled(40, 2), answers=1000, seed=0).num_rows == 40
    assert choose(sampled(40, 1), answers=10, seed=0).num_rows == 0


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 3.0])
@pytest.mark.parametrize("conversations", [16, 256, 2048])
def test_the_cost_is_the_given_share(share, conversations):
    every, answers = measurements(share, conversations, 4)
    assert 1 <= every <= MOST_ITERATIONS
    spent = answers * REPEATS / 2
    assert spent <= share * conversations * every < spent + REPEATS / 2
    assert answers >= STATES * 4 or every == MOST_ITERATIONS


def test_never():
    assert measurements(0.0, 256, 4) == (0, 0) and measurements(0.1, 256, 1) == (0, 0)


def outcomes(scores: dict[tuple[int, int], float]) -> pa.Table:
    """Conversations by (start, repeat)."""
    talks = [
        Conversation(
            f"{start}/{repeat}",
            "e",
            "train",
            "x",
            [Turn(Role.USER, "u", [1])],
            score,
            StopReason.OUTCOME,
            sample=repeat,
        )
        for (start, repeat), score in scores.items()
    ]
    return to_table(talks).append_column("start", pa.array([start for start, _ in scores], pa.int32()))


def test_outcomes_belong_to_their_answers():
    answers = choose(sampled(8, 3), answers=6, seed=0)
    assert answers.num_rows == 6
    names = sorted(set(answers["conversation_id"].to_pylist()))
    talks = to_table(
        Conversation(name, "e", "train", f"c-{name}", [Turn(Role.USER, "u", [1])], 0.0, StopReason.OUTCOME)
        for name in names
    )
    known = {(start, repeat): (start % 3) / 4 + 0.1 * repeat for start in range(6) for repeat in range(2)}
    found = rank(talks, answers, np.array([1.0, 2, 3, 3, 2, 1]), outcomes(known))
    assert found["rank_correlation"] == pytest.approx(0.0) and found["states"] == 2 == found["ranked_states"]
    assert (
        found["gain"] == pytest.approx(0.0, abs=1e-6)
        and found["top_1"] == 0.5
        and found["best_gain"] == pytest.approx(0.25)
    )
    assert found["slope"] == pytest.approx(0.0, abs=1e-6) and (found["answers"], found["conversations"]) == (6, 12)
    del known[5, 0], known[5, 1]
    found = rank(talks, answers, np.array([1.0, 2, 3, 1, 2, 9]), outcomes(known))
    assert found["rank_correlation"] == pytest.approx(1.0), "an answer whose continuations failed is left out"
    assert found["gain"] == pytest.approx((0.25 + 0.125) / 2)
