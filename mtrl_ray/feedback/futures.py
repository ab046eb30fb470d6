"""Relative futures: two continuations of one state, by the same policy, and what each came to (2410.04612).

1. `branches` draws as many states as there are conversations, uniformly and without replacement over all agent turns in
   them, and continues the conversation from each anew. A conversation and its branch are two samples of the policy in that
   state, with the same user, whose own chance they have in common: that takes noise out of the difference of their returns.
2. Drawing a turn of each conversation, as for conversations of one length, would give a state of a short conversation
   more weight than one of a long one. How long it is depends on the answer, so answers that end it soon would count
   more, and their returns be those of the endings.
3. `futures` finds where the two part ways. If they say the same in the state that was drawn, that is a later state, in which
   both are again samples of the policy. Two that never part tell nothing and are left out.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mtrl_ray.dialogue.conversation import Conversation, from_table
from mtrl_ray.dialogue.responses import RESPONSES
from mtrl_ray.errors import DataError
from mtrl_ray.feedback.preferences import Numbers
from mtrl_ray.feedback.single_turns import parting
from mtrl_ray.processes.small_tasks import small_task
from mtrl_ray.rollout.lease import Lease, branch

Branch = tuple[Lease, str]
"""A branch, and the id of the conversation that it continues."""


def branches(leases: Sequence[Lease], conversations: Sequence[Conversation], samples: int, seed: int) -> list[Branch]:
    """Rule 1. `leases` gave the conversations, in their order, `samples` on each context; `seed` of the draw.

    Branches are the samples number `samples`, `samples + 1`, … of their contexts. Raises DataError if the agent never spoke.
    """
    states = [
        (lease, talk, turn) for lease, talk in zip(leases, conversations, strict=True) for turn in talk.agent_turns
    ]
    if not states:
        raise DataError(f"none of {len(conversations)} conversations has an agent turn to continue from")
    drawn = np.random.default_rng(seed).choice(len(states), min(len(conversations), len(states)), replace=False)
    found, taken = [], dict[int, int]()
    for place in sorted(drawn.tolist()):
        lease, talk, turn = states[place]
        number = taken[lease.index] = taken.get(lease.index, samples - 1) + 1
        found.append((branch(lease, talk, turn, number), talk.id))
    return found


def pair_futures(
    conversations: pa.Table, branched: pa.Table, parents: Sequence[str], penalty: float
) -> tuple[pa.Table, np.ndarray, Numbers]:
    """(answers, returns, numbers): rows of `RESPONSES`, two by two in one state, and float32 [answers].

    parents: of each row of `branched`, the id of the conversation that it continues. penalty: what an overlong answer costs. A
    return is the score less these costs. Numbers: `pairs`, and `alike`, branches that never parted from their conversation.
    """
    held = {talk.id: talk for talk in from_table(conversations)}
    rows, returns = list[dict[str, object]](), list[float]()
    branches_of = from_table(branched)
    for number, (talk, parent) in enumerate(zip(branches_of, parents, strict=True)):
        place = parting(held[parent], talk)
        if place is None:
            continue
        for sample, one in enumerate((held[parent], talk)):
            said = one.turns[place]
            rows.append(
                {
                    "conversation_id": parent,
                    "turn": place,
                    "sample": 2 * number + sample,
                    "tokens": said.tokens,
                    "logprobs": said.logprobs,
                    "versions": said.versions,
                    "finish": said.finish,
                    "text": said.text,
                }
            )
            returns.append(one.score - penalty * len(one.overlong))
    numbers = {"pairs": len(rows) / 2, "alike": len(branches_of) - len(rows) / 2}
    return pa.Table.from_pylist(rows, schema=RESPONSES), np.array(returns, dtype=np.float32), numbers


@small_task(num_returns=3)
def futures(
    conversations: pa.Table, branched: pa.Table, parents: Sequence[str], penalty: float
) -> tuple[pa.Table, np.ndarray, Numbers]:
    """`pair_futures` as a task."""
    return pair_futures(conversations, branched, parents, penalty)
