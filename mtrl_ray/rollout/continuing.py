"""Continuations: logged conversations, continued from one of their states to the end, to measure what an answer is worth.

A `Start` is a logged state and an answer in it: given token ids, or None, and then the policy samples one. A continuation is a
branch (`lease.branch`) with an identity of its own. The logged turns and the answer are given, and the newest policy says what
follows, so an outcome is a sample of the value of the answer under this policy.

The user is made with the seed of the logged conversation and hears the logged turns again, so it is in the same state, what it
hides included. The ids that the policy then reads have to be the logged ones. If they are not (another environment, a user
behind a network that answered differently), the continuation fails and has no outcome. From that state on chance is drawn anew
(`User.redraw`), as `Chance` says.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa

from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import Conversation
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.rollout.engine import Generation
from mtrl_ray.rollout.lease import Lease, branch, derive_seed
from mtrl_ray.settings.tree import Settings

Chance = Literal["independent", "common", "logged"]
"""The user's chance after the state: `independent` in every continuation; `common` to the answers in a state, so that they
differ by what was said alone, and independent between an answer's continuations; `logged`: the user's own, for users
without `redraw`."""


@dataclass(frozen=True)
class Start:
    """An answer in a logged state: `turn` is the index of the agent's turn whose history is the state.

    `lease` gave the conversation (`Logged.leases`). `number` tells the answers in one state apart. `answer`: token ids, their
    sampler's log-probabilities and versions if they are known (both may be empty), and the finish; None: the policy samples
    it, another one in every continuation.
    """

    lease: Lease
    conversation: Conversation
    turn: int
    number: int = 0
    answer: Generation | None = None


def continuations(
    run_seed: int, starts: Sequence[Start], repeats: int = 1, chance: Chance = "independent", stream: str = ""
) -> Iterator[Lease]:
    """`repeats` leases of every start, in order. `stream` names another draw of the same starts.

    Raises DataError for a turn that is not the agent's, an answer without tokens, a start given twice.
    """
    seen = set()
    for start in starts:
        state = (start.conversation.id, start.turn)
        where = f"conversation {start.conversation.id!r}, turn {start.turn}"
        if start.turn not in start.conversation.agent_turns:
            raise DataError(f"{where} is not the agent's, so it cannot be answered in another way")
        if start.answer is not None and not start.answer.tokens:
            raise DataError(f"{where}: the answer has no tokens")
        if (*state, start.number) in seen:
            raise DataError(f"{where} is started twice with number {start.number}")
        seen.add((*state, start.number))
        for repeat in range(repeats):
            own = derive_seed(run_seed, "continue", stream, *state, start.number, repeat)
            shared = derive_seed(run_seed, "continue", stream, *state, repeat)
            drawn = {"independent": derive_seed(own, "chance"), "common": derive_seed(shared, "chance"), "logged": None}
            lease = branch(start.lease, start.conversation, start.turn, repeat, start.answer, drawn[chance])
            name = "/".join(map(str, (*state, start.number, repeat)))
            yield replace(lease, seed=own, mixture=0.0, name=f"{name}/{stream}" if stream else name)


def by_start(table: pa.Table, leases: Sequence[Lease], repeats: int) -> pa.Table:
    """Continuations with a column `start`, int32: which of the starts each belongs to; ordered by it and by repeat."""
    start_of = {lease.id: place // repeats for place, lease in enumerate(leases)}
    numbers = pa.array([start_of[name] for name in table["id"].to_pylist()], pa.int32())
    table = table.append_column(pa.field("start", pa.int32()), numbers)
    return table.sort_by([("start", "ascending"), ("sample", "ascending")])


def redraws(settings: Settings) -> bool:
    """Whether the users of a run can draw anew from a state."""
    return make(settings.environment.name, **settings.environment.options).redraws


def require_chance(settings: Settings, chance: Chance) -> None:
    """Raises ConfigurationError if the users of a run cannot draw this chance."""
    if chance != "logged" and not redraws(settings):
        raise ConfigurationError(
            f"the users of environment {settings.environment.name!r} do not define redraw(seed), so what happens after a "
            "state cannot be drawn anew; define it, or take chance='logged'"
        )
