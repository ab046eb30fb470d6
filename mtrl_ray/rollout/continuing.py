"""Continuations: logged conversations that begin anew in one of their states and are continued to their ends.

1. A `Start` is a logged state and an answer in it: given token ids, or None, and the policy samples one. Every continuation
   is a lease of its own: the logged turns and the answer are given, the policy says what follows.
2. The user is made with the seed of the logged conversation and hears the logged turns again, so it is in the same state,
   what it hides included. The ids that the policy then reads have to be the logged ones: if they are not (another
   environment, a user behind a network that answered differently), the continuation fails and is no outcome.
3. From that state on chance is drawn anew (`User.redraw`), as `Noise` says.
4. The policy that continues is the newest: an outcome is a sample of the value of the answer under it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import Conversation, Finish
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.rollout.engine import Generation
from mtrl_ray.rollout.lease import Continuation, Lease, derive_seed
from mtrl_ray.settings.tree import Settings

Noise = Literal["independent", "common", "logged"]
"""The user's chance after the state: `independent` in every continuation; `common` to the answers in a state, so that they
differ by what was said alone, and independent between an answer's continuations; `logged`: the user's own, for users
without `redraw`."""

_LEASED = re.compile(r"(?P<split>.+)-(?P<iteration>\d{6,})-(?P<index>\d{7,})-(?P<sample>\d{3,})")


@dataclass(frozen=True)
class Start:
    """An answer in a logged state: `turn` is the index of the agent's turn whose history is the state.

    `number` tells the answers in one state apart. `answer`: token ids, their sampler's log-probabilities and versions if
    they are known (both may be empty), and the finish; None: the policy samples it, another one in every continuation.
    """

    conversation: Conversation
    turn: int
    number: int = 0
    answer: Generation | None = None


def continuations(
    run_seed: int, starts: Sequence[Start], repeats: int = 1, noise: Noise = "independent", stream: str = ""
) -> Iterator[Lease]:
    """`repeats` leases of every start, in order. `stream` names another draw of the same starts.

    Raises DataError for a conversation that no lease of a run describes, a turn that is not the agent's, a start given twice.
    """
    seen = set()
    for start in starts:
        talk, state = start.conversation, (start.conversation.id, start.turn)
        if (*state, start.number) in seen:
            raise DataError(f"conversation {talk.id!r}, turn {start.turn} is started twice with number {start.number}")
        seen.add((*state, start.number))
        split, index = _context(talk)
        given = _given(start)
        for repeat in range(repeats):
            name = (run_seed, "continue", stream, *state, start.number, repeat)
            shared = (run_seed, "continue", stream, *state, repeat)
            drawn = {"independent": derive_seed(*name, "user"), "common": derive_seed(*shared, "user"), "logged": None}
            yield Lease(
                split,
                index,
                talk.iteration,
                repeat,
                derive_seed(*name),
                given=given,
                user_seed=talk.seed,
                continues=Continuation(
                    f"{talk.id}/{start.turn}/{start.number}/{repeat}{stream and f'/{stream}'}",
                    sum(place < start.turn for place in talk.agent_turns),
                    tuple(talk.history(start.turn)),
                    drawn[noise],
                ),
            )


def by_start(table: pa.Table, leases: Sequence[Lease], repeats: int) -> pa.Table:
    """Continuations with a column `start`, int32: which of the starts each belongs to; ordered by it and by repeat."""
    start_of = {lease.id: place // repeats for place, lease in enumerate(leases)}
    numbers = pa.array([start_of[name] for name in table["id"].to_pylist()], pa.int32())
    table = table.append_column(pa.field("start", pa.int32()), numbers)
    return table.sort_by([("start", "ascending"), ("sample", "ascending")])


def redraws(settings: Settings) -> bool:
    """Whether the users of a run can draw anew from a state."""
    return make(settings.environment.name, **settings.environment.options).redraws


def require_noise(settings: Settings, noise: Noise) -> None:
    """Raises ConfigurationError if the users of a run cannot draw this noise."""
    if noise != "logged" and not redraws(settings):
        raise ConfigurationError(
            f"the users of environment {settings.environment.name!r} do not define redraw(seed), so what happens after a "
            "state cannot be drawn anew; define it, or take the noise 'logged'"
        )


def _context(talk: Conversation) -> tuple[str, int]:
    """Split and index of the context, from the identity that its lease gave the conversation."""
    found = _LEASED.fullmatch(talk.id)
    if found is None or found["split"] != talk.split:
        raise DataError(
            f"conversation {talk.id!r} was not held by a run's rollout workers, so its user cannot be restored; only such "
            "conversations can be continued from their states"
        )
    return talk.split, int(found["index"])


def _given(start: Start) -> tuple[Generation, ...]:
    """The agent's turns before the state, and the answer."""
    talk = start.conversation
    if start.turn not in talk.agent_turns:
        raise DataError(
            f"conversation {talk.id!r} has no turn {start.turn} of the agent; its agent's turns are {talk.agent_turns}"
        )
    if start.answer is not None and not start.answer.tokens:
        raise DataError(f"the answer to conversation {talk.id!r}, turn {start.turn} has no tokens")
    said = [talk.turns[place] for place in talk.agent_turns if place < start.turn]
    before = [
        Generation(f"{talk.id}/{k}", turn.tokens, turn.logprobs, turn.versions, turn.finish or Finish.STOP)
        for k, turn in enumerate(said)
    ]
    return (*before, *([] if start.answer is None else [start.answer]))
