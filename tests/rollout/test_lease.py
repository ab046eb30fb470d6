"""Leases: identities and seeds of their own, and who samples which."""

import pytest

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn
from mtrl_ray.rollout.lease import branch, make_leases


def test_every_lease_has_its_own_identity_and_seed():
    leases = [lease for iteration in range(3) for lease in make_leases(0, "train", iteration, range(5), 4)]
    assert len({lease.id for lease in leases}) == len({lease.seed for lease in leases}) == 60
    assert make_leases(0, "train", 1, [3], 4)[2] == next(
        lease for lease in leases if (lease.iteration, lease.index, lease.sample) == (1, 3, 2)
    )


def test_mixtures_go_round_among_the_samples():
    assert [lease.mixture for lease in make_leases(0, "train", 0, [0, 1], 2, (0.0, 1.0))] == [0.0, 1.0, 0.0, 1.0]
    assert {lease.mixture for lease in make_leases(0, "train", 0, [0], 4, (0.3,))} == {0.3}


def test_branches_are_drawn_over_all_turns():
    turns = [
        turn for k in range(4) for turn in (Turn(Role.USER, "u", [1]), Turn(Role.AGENT, "a", [10 + k], [-1.0], [0]))
    ]
    talk = Conversation("x", "test", "train", "x", turns, 0.5, StopReason.OUTCOME)
    drawn = [branch(lease, talk) for lease in make_leases(0, "train", 0, range(200))]
    counts = [sum(len(lease.given) == k for lease in drawn) for k in range(5)]
    assert counts[4] == 0 and all(30 < count < 70 for count in counts[:4]), counts
    assert all([one.tokens[0] for one in lease.given] == [10, 11, 12, 13][: len(lease.given)] for lease in drawn)
    assert branch(make_leases(0, "train", 0, [7])[0], talk) == drawn[7]


def test_a_conversation_without_an_agent_turn_has_no_branch():
    talk = Conversation("x", "test", "train", "x", [Turn(Role.USER, "u", [1])], 0.5, StopReason.USER_LEFT)
    with pytest.raises(ValueError, match="'x' has no agent turn"):
        branch(make_leases(0, "train", 0, [0])[0], talk)
