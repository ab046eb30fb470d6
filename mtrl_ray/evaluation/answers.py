"""Which sampled answers are worth continuing to the end, and the starts of their continuations (`System.continued`)."""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrl_ray.dialogue.conversation import Finish, iterate
from mtrl_ray.processes.refs import Ref
from mtrl_ray.processes.small_tasks import small_task
from mtrl_ray.rollout.continuing import Start, redraws
from mtrl_ray.rollout.engine import Generation

if TYPE_CHECKING:
    from mtrl_ray.system.logged import Logged
    from mtrl_ray.system.system import System


def choose(responses: pa.Table, answers: int | None, seed: int) -> pa.Table:
    """Answers that differ, of states that have several, by state; whole states, drawn at random, of about `answers` in all
    (None: all of them).

    responses: rows of `responses.RESPONSES`. The first answer of those that are alike stays.
    """
    states: dict[tuple[str, int], dict[tuple[int, ...], int]] = {}
    columns = [responses[name].to_pylist() for name in ("conversation_id", "turn", "tokens")]
    for row, (name, turn, tokens) in enumerate(zip(*columns, strict=True)):
        states.setdefault((name, turn), {}).setdefault(tuple(tokens), row)
    several = [list(rows.values()) for rows in states.values() if len(rows) > 1]
    drawn: list[int] = []
    for place in np.random.default_rng(seed).permutation(len(several)):
        if answers is not None and drawn and len(drawn) + len(several[place]) > answers:
            break
        drawn += several[place]
    return responses.take(pa.array(sorted(drawn), pa.int64()))


def starts_of_answers(logged: "Logged", conversations: pa.Table, answers: pa.Table) -> list[Start]:
    """A start for each of the answers, rows of `responses.RESPONSES`, in these conversations of `logged`."""
    leases = {lease.id: lease for lease in logged.leases}
    talks = {talk.id: talk for talk in iterate(conversations)}
    return [
        Start(
            leases[row["conversation_id"]],
            talks[row["conversation_id"]],
            row["turn"],
            row["sample"],
            Generation("", row["tokens"], row["logprobs"], row["versions"], Finish(row["finish"])),
        )
        for row in answers.to_pylist()
    ]


def continue_all(
    system: "System", logged: "Logged", responses: Ref[pa.Table], repeats: int
) -> tuple[pa.Table, pa.Table]:
    """All answers that differ from others in their state, and each continued `repeats` times (`System.continued`).

    Chance after a state is common to its answers, if the users can draw it. Raises like `System.continued`.
    """
    chosen = choose(system.fetch(responses, "responses to continue"), None, 0)
    starts = starts_of_answers(logged, system.fetch(logged.table, "the conversations to continue"), chosen)
    return chosen, system.continued(starts, repeats, "common" if redraws(system.settings) else "logged")


@small_task(num_returns=2)
def chosen_answers(
    conversations: pa.Table, responses: pa.Table, answers: int | None, seed: int
) -> tuple[pa.Table, pa.Table]:
    """The answers that `choose` gives, after their conversations."""
    chosen = choose(responses, answers, seed)
    theirs = pc.is_in(conversations["id"], pc.unique(chosen["conversation_id"]))
    return conversations.filter(theirs), chosen
