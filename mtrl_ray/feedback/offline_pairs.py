"""Compared pairs of the initial policy's conversations, rolled out before the first iteration: what models are first fitted on.

1. The conversations are on training contexts of their own (`FIRST_CONTEXT` on), which no iteration uses; they are no
   training data of the policy and do not go through the replay buffer.
2. `whole_pairs` are two conversations on a context, compared. `parted_pairs` are one and its branch, which goes its own way
   from a turn drawn at random: two responses in one state (`mtrl_ray.feedback.single_turns`).
3. A run that is killed before its first checkpoint rolls out the same conversations again.
"""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from mtrl_ray.dialogue.conversation import Conversation, iterate
from mtrl_ray.feedback.preferences import PreferenceSettings, compare_pairs, pair_up
from mtrl_ray.feedback.single_turns import Feedback, parted
from mtrl_ray.processes.refs import Ref
from mtrl_ray.processes.small_tasks import small_task
from mtrl_ray.rollout.lease import Lease, branch, drawn_turn, make_leases

if TYPE_CHECKING:
    from mtrl_ray.system.system import System

FIRST_CONTEXT = 10_000_000
"""Index of the first training context of pairs."""
TAG = 0
"""Takes the iteration's place in their identities."""


Compared = tuple[Ref[pa.Table], Ref[np.ndarray]]
"""Pairs, and each conversation's probability to be preferred to its partner."""


def whole_pairs(system: "System", contexts: int, settings: PreferenceSettings) -> Compared:
    """Pairs of whole conversations, compared."""
    indices = range(FIRST_CONTEXT, FIRST_CONTEXT + contexts)
    held = system.evaluation_rollouts("train", indices, samples=2, tag=TAG)
    return compare_pairs(system, pair_up(system, ray.put(held)), settings)


def parted_pairs(system: "System", contexts: int, settings: PreferenceSettings, feedback: Feedback) -> Compared:
    """The same of pairs that end with two responses in one state, compared as `feedback` says."""
    indices = range(FIRST_CONTEXT, FIRST_CONTEXT + contexts)
    leases = {lease.id: lease for lease in make_leases(system.settings.run.seed, "train", TAG, indices)}
    first = system.evaluation_rollouts_of(list(leases.values()))
    second = system.evaluation_rollouts_of(
        [_partner(leases[talk.id], talk) for talk in iterate(first) if talk.agent_turns]
    )
    pairs = pair_up(system, ray.put(pa.concat_tables([first, second]).sort_by("id")))
    judged, read, numbers = parted.remote(pairs, feedback)
    system.record("preferences", numbers)
    compared, preferred = compare_pairs(system, judged, settings)
    return _those_of.remote(read, compared), preferred


def _partner(lease: Lease, conversation: Conversation) -> Lease:
    return branch(lease, conversation, drawn_turn(lease, conversation), lease.sample + 1)


def divided(pairs: Ref[pa.Table], preferred: Ref[np.ndarray], share: float) -> list[Compared]:
    """The first `share` of the pairs, and the others. Neither is empty."""
    head, head_preferred, tail, tail_preferred = _divided.remote(pairs, preferred, share)
    return [(head, head_preferred), (tail, tail_preferred)]


@small_task()
def _those_of(table: pa.Table, others: pa.Table) -> pa.Table:
    """The rows whose conversations the other table has too."""
    return table.filter(pc.is_in(table["id"], others["id"].combine_chunks()))


@small_task(num_returns=4)
def _divided(pairs: pa.Table, preferred: np.ndarray, share: float) -> tuple[pa.Table, np.ndarray, pa.Table, np.ndarray]:
    count = pairs.num_rows // 2
    place = 2 * min(max(round(share * count), 1), count - 1)
    return pairs.slice(0, place), preferred[:place], pairs.slice(place), preferred[place:]
