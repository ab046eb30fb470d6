"""Single turns from whole conversations: for baselines that compare one response with another (2405.14655 §6).

1. Two conversations that are alike up to a state in which the agent says two different things compare these two
   responses. `parted` finds that state and cuts both after the response: what a model of single turns reads.
2. `reward` feedback compares what was cut: the responses as they stand. `value` feedback compares the two whole
   conversations, each of which the policy has continued to its end.
3. `matches` puts two responses in the same logged state next to each other, each as the end of its history.
4. A cut conversation ends with `StopReason.LOGGED`, and has no score: nobody has seen its outcome.
"""

from dataclasses import replace
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from mtrl_ray.dialogue.conversation import Conversation, Finish, Role, StopReason, Turn, from_table, to_table
from mtrl_ray.errors import DataError
from mtrl_ray.feedback.preferences import Numbers
from mtrl_ray.processes.small_tasks import small_task

Feedback = Literal["reward", "value"]
"""Whether responses are compared as they stand, or by what the policy makes of them until the end."""


def parting(first: Conversation, second: Conversation) -> int | None:
    """The turn in which the agent says different things in the same state; None if there is none."""
    for turn, (one, other) in enumerate(zip(first.turns, second.turns, strict=False)):
        if one.tokens != other.tokens:
            return turn if one.role == other.role == Role.AGENT else None
    return None


def cut(conversation: Conversation, turn: int) -> Conversation:
    """The conversation up to and including `turn`."""
    return replace(conversation, turns=conversation.turns[: turn + 1], stop=StopReason.LOGGED, score=0.0, metrics={})


def part(pairs: pa.Table, feedback: Feedback) -> tuple[pa.Table, pa.Table, Numbers]:
    """(what is compared, what a model reads of it, numbers) of the pairs that diverge at an agent's turn.

    pairs: as `preferences.pairs_of` gives them. Numbers: `alike`, pairs that never do. Raises DataError if none does.
    """
    talks = from_table(pairs)
    places = [parting(one, other) for one, other in zip(talks[::2], talks[1::2], strict=True)]
    kept = pa.array([place is not None for place in places for _ in range(2)])
    if not pc.any(kept).as_py():
        raise DataError(f"none of {len(places)} pairs of conversations parts ways at one of the agent's turns")
    read = to_table(cut(talk, place) for row, talk in enumerate(talks) if (place := places[row // 2]) is not None)
    return pairs.filter(kept) if feedback == "value" else read, read, {"alike": float(places.count(None))}


def matches(conversations: pa.Table, ours: pa.Table, theirs: pa.Table) -> pa.Table:
    """Pairs of conversations that end with a response of `ours` and the one of `theirs` in the same state, in ours' order.

    Both: rows of `responses.RESPONSES`, matched by state and sample. Raises DataError if one has no match.
    """
    held = {talk.id: talk for talk in from_table(conversations)}
    other = {_key(row): row for row in theirs.to_pylist()}
    pairs = []
    for row in ours.to_pylist():
        if _key(row) not in other or row["conversation_id"] not in held:
            raise DataError(f"the response {'/'.join(map(str, _key(row)))} has no match in its state")
        talk = held[row["conversation_id"]]
        pairs += [_ended(talk, row, "ours"), _ended(talk, other[_key(row)], "theirs")]
    return to_table(pairs)


@small_task(num_returns=3)
def parted(pairs: pa.Table, feedback: Feedback) -> tuple[pa.Table, pa.Table, Numbers]:
    """`part` as a task."""
    return part(pairs, feedback)


@small_task()
def matched(conversations: pa.Table, ours: pa.Table, theirs: pa.Table) -> pa.Table:
    """`matches` as a task."""
    return matches(conversations, ours, theirs)


def _key(row: dict[str, object]) -> tuple[object, ...]:
    return row["conversation_id"], row["turn"], row["sample"]


def _ended(talk: Conversation, row: dict[str, object], side: str) -> Conversation:
    said = {name: row[name] for name in ("text", "tokens", "logprobs", "versions")}
    turns = [*talk.turns[: int(str(row["turn"]))], Turn(Role.AGENT, **said, finish=Finish(str(row["finish"])))]  # type: ignore[arg-type]
    name = "/".join(map(str, (*_key(row), side)))
    return replace(talk, id=name, turns=turns, stop=StopReason.LOGGED, score=0.0, metrics={})
