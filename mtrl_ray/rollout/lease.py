"""Leases: which conversation to roll out, under which identity and seed.

A lease's identity is (split, iteration, context, sample); its seed is a hash of that and the run's seed, so the same
lease gives the same conversation under the same weights, on any worker and any number of times.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mtrl_ray.dialogue.conversation import Conversation, Finish
from mtrl_ray.rollout.engine import Generation


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) from a tuple of names and numbers, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Lease:
    """One conversation to roll out: the `index`-th context of `split`, its `sample`-th conversation of `iteration`.

    `mixture`: the reference's share in what is sampled (`rollout.engine`). `given`: the agent's first turns, taken as
    they are before the policy speaks; `user_seed`: of the user, if it is not the lease's own.
    """

    split: str
    index: int
    iteration: int
    sample: int
    seed: int
    mixture: float = 0.0
    given: tuple[Generation, ...] = ()
    user_seed: int | None = None

    @property
    def id(self) -> str:
        """The conversation's identity, unique within a run."""
        return f"{self.split}-{self.iteration:06d}-{self.index:07d}-{self.sample:03d}"


def make_leases(
    run_seed: int,
    split: str,
    iteration: int,
    indices: Iterable[int],
    samples: int = 1,
    mixtures: Sequence[float] = (0.0,),
) -> list[Lease]:
    """Leases for `samples` conversations on each context; `mixtures` of the first sample, the second, …, and round again."""
    return [
        Lease(
            split,
            index,
            iteration,
            sample,
            derive_seed(run_seed, split, iteration, index, sample),
            mixtures[sample % len(mixtures)],
        )
        for index in indices
        for sample in range(samples)
    ]


def branch(lease: Lease, conversation: Conversation) -> Lease:
    """The next sample: it repeats the agent turns of `conversation` (from `lease`) up to a uniformly drawn turn, then diverges.

    Its user has the same seed, so a scripted user answers the given turns alike. Raises ValueError if the agent
    never spoke.
    """
    turns = [conversation.turns[place] for place in conversation.agent_turns]
    drawn = derive_seed(lease.seed, "branch turn") % len(turns) if turns else None
    if drawn is None:
        raise ValueError(f"conversation {conversation.id!r} has no agent turn to branch at")
    given = tuple(
        Generation(f"{conversation.id}/{k}", turn.tokens, turn.logprobs, turn.versions, turn.finish or Finish.STOP)
        for k, turn in enumerate(turns[:drawn])
    )
    return replace(
        lease, sample=lease.sample + 1, seed=derive_seed(lease.seed, "branch"), given=given, user_seed=lease.seed
    )
