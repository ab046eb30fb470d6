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
class State:
    """The logged state that a branch begins in: its user has to get there again by itself.

    `turns`: how many the agent took before the state; `history`: `fingerprint` of the token ids that make the state; `chance`:
    seed of what the user draws after it, None for the user's own.
    """

    turns: int
    history: int
    chance: int | None = None


def fingerprint(tokens: Sequence[int]) -> int:
    """A hash of token ids, 63 bits."""
    return derive_seed(*tokens)


@dataclass(frozen=True)
class Lease:
    """One conversation to roll out: the `index`-th context of `split`, its `sample`-th conversation of `iteration`.

    `mixture`: the reference's share in what is sampled (`rollout.engine`). `given`: the agent's first turns, taken as they
    are before the policy speaks; `user_seed`: of the user, if it is not the lease's own; `state`: what these turns have to
    lead to; `name`: its identity, if it is no conversation of an iteration; `temperature`: None for the run's.
    """

    split: str
    index: int
    iteration: int
    sample: int
    seed: int
    mixture: float = 0.0
    given: tuple[Generation, ...] = ()
    user_seed: int | None = None
    state: State | None = None
    name: str | None = None
    temperature: float | None = None

    @property
    def id(self) -> str:
        """The conversation's identity, unique within a run."""
        if self.name is not None:
            return self.name
        return f"{self.split}-{self.iteration:06d}-{self.index:07d}-{self.sample:03d}"


def make_leases(
    run_seed: int,
    split: str,
    iteration: int,
    indices: Iterable[int],
    samples: int = 1,
    mixtures: Sequence[float] = (0.0,),
) -> list[Lease]:
    """Leases for `samples` conversations on each context; `mixtures`: of the first sample, the second, …, cyclically."""
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


def branch(
    lease: Lease,
    conversation: Conversation,
    turn: int,
    sample: int,
    answer: Generation | None = None,
    chance: int | None = None,
) -> Lease:
    """Continue `conversation`, which `lease` gave, anew from its agent turn `turn` (an index into its turns).

    What was said before is repeated, and the user has the same seed, so a scripted user is restored to where it was; if it does
    not get there, the branch fails. Then comes `answer`, or, if there is none, what the policy samples; the policy continues to
    the end. `chance`: seed of what the user draws from here on (it needs `redraw`); None: its own, so branches have it in
    common. The branch is sample number `sample` of its context, which no other lease of the iteration may be. Raises ValueError
    if `turn` is not the agent's.
    """
    if turn not in conversation.agent_turns:
        raise ValueError(f"turn {turn} of conversation {conversation.id!r} is not one of the agent's")
    before = [conversation.turns[place] for place in conversation.agent_turns if place < turn]
    given = tuple(
        Generation(f"{conversation.id}/{k}", said.tokens, said.logprobs, said.versions, said.finish or Finish.STOP)
        for k, said in enumerate(before)
    )
    return replace(
        lease,
        sample=sample,
        seed=derive_seed(lease.seed, "branch", sample),
        given=given if answer is None else (*given, answer),
        user_seed=lease.seed if lease.user_seed is None else lease.user_seed,
        state=State(len(before), fingerprint(conversation.history(turn)), chance),
    )


def drawn_turn(lease: Lease, conversation: Conversation) -> int:
    """One of the agent's turns, drawn uniformly: an index into the turns. Raises ValueError if the agent never spoke."""
    turns = conversation.agent_turns
    if not turns:
        raise ValueError(f"conversation {conversation.id!r} has no agent turn to branch at")
    return turns[derive_seed(lease.seed, "branch turn") % len(turns)]
