"""Leases: identities and seeds of their own, and who samples which."""

import pytest

from mtrl_ray.dialogue.conversation import Conversation, Finish, Role, StopReason, Turn
from mtrl_ray.rollout.engine import Generation
from mtrl_ray.rollout.lease import branch, drawn_turn, make_leases


def test_every_lease_has_its_own_identity_and_seed():
    leases = [lease for iteration in range(3) for lease in make_leases(0, "train", iteration, range(5), 4)]
    assert len({lease.id for lease in leases}) == len({lease.seed for lease in leases}) == 60
    assert make_leases(0, "train", 1, [3], 4)[2] == next(
        lease for lease in leases if (lease.iteration, lease.index, lease.sample) == (1, 3, 2)
    )


def test_mixtures_go_round_among_the_samples():
    assert [lease.mixture for lease in make_leases(0, "train", 0, [0, 1], 2, (0.0, 1.0))] == [0.0, 1.0, 0.0, 1.0]
    assert {lease.mixture for lease in make_leases(0, "train", 0, [0], 4, (0.3,))} == {0.3}


def talk_of(turns: int) -> Conversation:
    """Agent turns at 1, 3, …, each of one token, 10, 11, …"""
    said = [
        turn for k in range(turns) for turn in (Turn(Role.USER, "u", [1]), Turn(Role.AGENT, "a", [10 + k], [-1.0], [0]))
    ]
    return Conversation("x", "test", "train", "x", said, 0.5, StopReason.OUTCOME)


def test_a_turn_to_branch_at_is_drawn_over_all_turns():
    drawn = [drawn_turn(lease, talk_of(4)) for lease in make_leases(0, "train", 0, range(200))]
    assert set(drawn) == {1, 3, 5, 7} and all(30 < drawn.count(turn) < 70 for turn in (1, 3, 5, 7)), drawn
    assert drawn_turn(make_leases(0, "train", 0, [7])[0], talk_of(4)) == drawn[7]
    with pytest.raises(ValueError, match="'x' has no agent turn"):
        drawn_turn(make_leases(0, "train", 0, [0])[0], talk_of(0))


def test_a_branch_repeats_what_came_before_its_turn():
    lease = make_leases(0, "train", 0, [7])[0]
    for turn, said in ((1, []), (3, [[10]]), (7, [[10], [11], [12]])):
        branched = branch(lease, talk_of(4), turn, 5)
        assert [one.tokens for one in branched.given] == said and branched.user_seed == lease.seed != branched.seed
        assert (branched.index, branched.iteration, branched.sample) == (7, 0, 5)
    answer = Generation("", [42, 43], [-1.0, -2.0], [0, 0], Finish.STOP)
    answered = [branch(lease, talk_of(4), 3, sample, answer) for sample in (5, 6)]
    assert all([one.tokens for one in branched.given] == [[10], [42, 43]] for branched in answered)
    assert answered[0].seed != answered[1].seed and answered[0].id != answered[1].id
    again = branch(answered[0], talk_of(4), 1, 7)
    assert again.user_seed == lease.seed, "a branch of a branch has the same user"


def test_only_an_agent_turn_can_be_branched_at():
    for turn in (0, 2, 8, -1):
        with pytest.raises(ValueError, match=f"turn {turn} of conversation 'x' is not one of the agent's"):
            branch(make_leases(0, "train", 0, [0])[0], talk_of(4), turn, 1)
