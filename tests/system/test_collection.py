"""Conversations that cannot be kept: found in the worker, and counted if the replay buffer alone finds them."""

from dataclasses import replace
from typing import Any

import pytest

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, from_table
from mtrl_ray.errors import DataError
from mtrl_ray.replay.columns import faults
from mtrl_ray.rollout.lease import make_leases
from mtrl_ray.rollout.sifting import sift
from mtrl_ray.settings.tree import RolloutSettings
from mtrl_ray.system.collection import _Work

LEASES = make_leases(0, "train", 0, range(4))


def talk(name: str, reward: Any = 0.5, **changes: Any) -> Conversation:
    turns = [
        Turn(Role.USER, "Hi.", [1]),
        Turn(Role.AGENT, "Yes?", [2], [-1.0], [0], reward=reward),
        Turn(Role.USER, "Bye.", [3]),
    ]
    return replace(Conversation(name, "e", "train", "x", turns, 0.5, StopReason.OUTCOME), **changes)


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ({"reward": 1e39}, "turn 1: a reward or log-probability is not finite"),
        ({"stop": "finished"}, "'finished' is not a valid StopReason"),
        ({"score": 2.0}, "score is 2.0"),
        ({"metrics": {"m": "high"}}, "metric 'm' is 'high'"),
        ({"metrics": None}, "the environment's metrics are None"),
        ({"reward": "much"}, "malformed and cannot be kept"),
        ({"turns": 7}, "malformed and cannot be kept"),
    ],
)
def test_what_the_buffer_would_refuse_fails_in_the_worker_and_no_other_does(wrong: dict[str, Any], cause: str):
    table, kept, failures = sift([talk("b", **wrong), talk("a"), talk("c")])
    assert [one.id for one in from_table(table)] == ["a", "c"] == [one.id for one in kept] and not faults(table)
    [failure] = failures
    assert (failure.id, failure.kind) == ("b", "DataError") and cause in failure.message


def test_what_the_buffer_refuses_is_left_out_and_counted():
    work, held = _Work(), {lease.id for lease in LEASES[1:]}
    work.refuse([f"conversation {LEASES[0].id!r}: score is 2.0, it has to lie in [0, 1]"], LEASES)
    assert work.check_left_out(LEASES, held, RolloutSettings()) == 1
    assert "refused by the replay buffer: conversation 'train-000000-0000000-000': score is 2.0" in work.causes()
    with pytest.raises(DataError, match=r"1 of 4 conversations .*the first, train-000000-0000000-000: .*score is 2.0"):
        work.check_left_out(LEASES, held, RolloutSettings(data_errors=0.1))


def test_a_whole_table_that_is_refused_is_no_empty_iteration():
    work = _Work()
    work.refuse(["table 0: it has columns of another type"], LEASES)
    with pytest.raises(DataError, match=r"4 of 4 conversations failed .* another type"):
        work.check_left_out(LEASES, set(), RolloutSettings(data_errors=1))
