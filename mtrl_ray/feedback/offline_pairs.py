"""Compared pairs of conversations of the initial policy, held before the first iteration: what models are first fitted on.

1. The conversations are on training contexts of their own (`FIRST_CONTEXT` on), which no iteration uses; they are no
   training data of the policy and do not go through the replay buffer.
2. `whole_pairs` are two conversations on a context, compared. `parted_pairs` are one and its branch, which goes its own way
   from a turn drawn at random: two responses in one state (`mtrl_ray.feedback.single_turns`).
3. A run that is killed before its first checkpoint holds the same conversations again.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from mtrl_ray.dialogue.conversation import iterate
from mtrl_ray.feedback.preferences import PreferenceSettings
from mtrl_ray.feedback.single_turns import Feedback, parted
from mtrl_ray.processes.small_tasks import small_task
from mtrl_ray.rollout.lease import branch, make_leases

if TYPE_CHECKING:
    from mtrl_ray.system.system import System

FIRST_CONTEXT = 10_000_000
"""Index of the first training context that pairs are held on."""
TAG = 0
"""Takes the iteration's place in their identities."""


def whole_pairs(system: "System", contexts: int, settings: PreferenceSettings) -> tuple[Any, Any]:
    """Refs of compared pairs, and of each conversation's probability to be preferred to its partner."""
    indices = range(FIRST_CONTEXT, FIRST_CONTEXT + contexts)
    held = system.evaluation_rollouts("train", indices, samples=2, tag=TAG)
    return system.compare(system.pairs(ray.put(held)), settings)


def parted_pairs(system: "System", contexts: int, settings: PreferenceSettings, feedback: Feedback) -> tuple[Any, Any]:
    """The same of pairs that end with two responses in one state, compared as `feedback` says."""
    indices = range(FIRST_CONTEXT, FIRST_CONTEXT + contexts)
    leases = {lease.id: lease for lease in make_leases(system.settings.run.seed, "train", TAG, indices)}
    first = system.evaluation_rollouts_of(list(leases.values()))
    second = system.evaluation_rollouts_of(
        [branch(leases[talk.id], talk) for talk in iterate(first) if talk.agent_turns]
    )
    pairs = system.pairs(ray.put(pa.concat_tables([first, second]).sort_by("id")))
    judged, read, numbers = parted.remote(pairs, feedback)
    system.promise("preferences", numbers)
    compared, preferred = system.compare(judged, settings)
    return _those_of.remote(read, compared), preferred


def divided(pairs: Any, preferred: Any, share: float) -> list[tuple[Any, Any]]:
    """(pairs, preferred) of the first `share` of the pairs, and of the others, as refs. Neither is empty."""
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
