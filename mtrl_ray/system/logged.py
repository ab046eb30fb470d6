"""Conversations in the replay buffer, as an algorithm has them: refs of their tables, and of the states in them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from mtrl_ray.processes.refs import Ref
from mtrl_ray.rollout.lease import Lease, derive_seed


@dataclass(frozen=True)
class States:
    """Logged states: the ref of a table (conversation_id, turn, tokens), and how many."""

    table: Ref[pa.Table]
    count: int
    seed: int


@dataclass(frozen=True)
class Logged:
    """The conversations of these leases, in the replay buffer, and the number of agent turns of each. `seed`: the run's."""

    buffer: Any
    seed: int
    iteration: int
    leases: list[Lease]
    agent_turns: list[int]

    @property
    def ids(self) -> list[str]:
        """The conversations' ids."""
        return [lease.id for lease in self.leases]

    @cached_property
    def table(self) -> Ref[pa.Table]:
        """These conversations, in the order of `leases`."""
        table: Ref[pa.Table] = self.buffer.take.remote(self.ids)
        return table

    def window(self, iterations: int) -> Ref[pa.Table]:
        """The conversations of the newest `iterations` iterations."""
        table: Ref[pa.Table] = self.buffer.window.remote(iterations)
        return table

    def earlier(self, iterations: int) -> Ref[pa.Table | None]:
        """The conversations of `window` without this iteration's; a ref of None if there are none."""
        table: Ref[pa.Table | None] = self.buffer.earlier.remote(iterations)
        return table

    def states(self, count: int, round_number: int = 0) -> States:
        """About `count` of this iteration's states: all those of conversations drawn uniformly without replacement.

        Every state is as likely to be drawn as any other, and the learner reads each conversation once for all of its
        states, so whole conversations cost least.
        """
        seed = derive_seed(self.seed, "states", self.iteration, round_number)
        order = np.random.default_rng(seed).permutation(len(self.leases))
        totals = np.cumsum(np.array(self.agent_turns)[order])
        drawn = order[: int(np.searchsorted(totals, count)) + 1]
        table = self.buffer.states.remote(None, seed, ids=[self.leases[place].id for place in drawn])
        return States(table, sum(self.agent_turns[place] for place in drawn), seed)
