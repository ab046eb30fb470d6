"""Relative futures: states drawn uniformly, branches with identities of their own, answers and returns of pairs."""

from collections import Counter

import numpy as np
import pytest

from mtrl_ray.dialogue.conversation import Conversation, Finish, Role, StopReason, Turn, to_table
from mtrl_ray.errors import DataError
from mtrl_ray.feedback.futures import branches, pair_futures
from mtrl_ray.rollout.lease import make_leases


def talk(name: str, answers: list[int], score: float = 0.5, stop: StopReason = StopReason.OUTCOME) -> Conversation:
    """One token per answer; the user's turn repeats it."""
    turns = [Turn(Role.SYSTEM, "s", tokens=[1]), Turn(Role.USER, "u", tokens=[2])]
    for token in answers:
        turns.append(Turn(Role.AGENT, "a", tokens=[token], logprobs=[-0.5], versions=[4], finish=Finish.STOP))
        turns.append(Turn(Role.USER, "u", tokens=[token, 3]))
    return Conversation(name, "test", "train", "x", turns, score, stop)


def test_every_state_is_as_likely_to_be_drawn_and_has_a_sample_of_its_own():
    leases = make_leases(0, "train", 3, range(6), samples=2)
    talks = [talk(lease.id, [10 + k for k in range(1 + place % 4)]) for place, lease in enumerate(leases)]
    states = sum(len(one.agent_turns) for one in talks)
    counts = Counter[tuple[str, int]]()
    for seed in range(300):
        drawn = branches(leases, talks, 2, seed)
        assert len(drawn) == len(talks)
        assert len({lease.id for lease, _ in drawn} | {lease.id for lease in leases}) == 2 * len(talks)
        for lease, parent in drawn:
            assert lease.sample >= 2 and parent.startswith(f"train-000003-{lease.index:07d}-")
        counts.update((parent, len(lease.given)) for lease, parent in drawn)
    assert len(counts) == states
    expected = 300 * len(talks) / states
    assert all(0.7 * expected < count < 1.3 * expected for count in counts.values()), counts
    assert branches(leases, talks, 2, 7) == branches(leases, talks, 2, 7)
    with pytest.raises(DataError, match="none of 12 conversations has an agent turn"):
        branches(leases, [talk(lease.id, []) for lease in leases], 2, 0)


def test_pairs_are_two_answers_in_one_state_with_the_returns_of_their_conversations():
    first = [talk("a", [10, 11, 12], 1.0), talk("b", [10, 11], 0.25)]
    branched = [
        talk("a2", [10, 21], 0.5),  # another second answer
        talk("b2", [10, 11], 0.25),  # the same to the end
        talk("a3", [10, 11, 31, 32], 0.75, StopReason.TOKEN_LIMIT),  # the window cut it off
        talk("b3", [20], 0.0),
    ]
    branched[3].turns[2].finish = Finish.LENGTH
    answers, returns, numbers = pair_futures(to_table(first), to_table(branched), ["a", "b", "a", "b"], 0.1)
    rows = answers.to_pylist()
    found = [(row["conversation_id"], row["turn"], row["tokens"]) for row in rows]
    assert found == [("a", 4, [11]), ("a", 4, [21]), ("a", 6, [12]), ("a", 6, [31]), ("b", 2, [10]), ("b", 2, [20])]
    assert len({(row["conversation_id"], row["turn"], row["sample"]) for row in rows}) == 6
    assert rows[0]["logprobs"] == [-0.5] and rows[0]["versions"] == [4] and rows[5]["finish"] == "length"
    np.testing.assert_allclose(returns, [1.0, 0.5, 1.0, 0.65, 0.25, -0.1], atol=1e-6)
    assert numbers == {"pairs": 3.0, "alike": 1.0}


def test_no_pair_is_an_empty_table():
    answers, returns, numbers = pair_futures(to_table([talk("a", [10])]), to_table([talk("c", [10])]), ["a"], 0.0)
    assert answers.num_rows == 0 == len(returns) and numbers == {"pairs": 0.0, "alike": 1.0}
