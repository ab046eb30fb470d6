"""Small tasks on the tables that workers return: what conversations and responses were like, in numbers."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrl_ray.dialogue.conversation import Finish, Role, StopReason
from mtrl_ray.learner.operation import Numbers
from mtrl_ray.processes.small_tasks import small_task


def described_conversations(conversations: pa.Table) -> Numbers:
    """How conversations ended, as shares: `stop_outcome`, …; and `lengths` of their agent's turns."""
    turns = pc.list_flatten(conversations["turns"])
    agent = turns.filter(pc.equal(pc.struct_field(turns, "role"), Role.AGENT.value))
    shares = {
        f"stop_{reason}": float(pc.mean(pc.equal(conversations["stop"], reason.value)).as_py() or 0.0)
        for reason in StopReason
    }
    return shares | lengths(pc.struct_field(agent, "tokens"), pc.struct_field(agent, "finish"))


def described_responses(responses: pa.Table) -> Numbers:
    """`lengths` of responses; `distinct`, the mean number that differ in a state, and `alike`, the share of states in which all
    are the same. `alike` is left out if every state has a single response."""
    names, turns, tokens = (responses[name].to_pylist() for name in ("conversation_id", "turn", "tokens"))
    states = Counter(zip(names, turns, strict=True))
    different = Counter((name, turn) for name, turn, _ in {*zip(names, turns, map(tuple, tokens), strict=True)})
    several = [state for state, count in states.items() if count > 1]
    numbers = lengths(responses["tokens"], responses["finish"])
    if several:
        numbers["distinct"] = float(np.mean([different[state] for state in several]))
        numbers["alike"] = float(np.mean([different[state] == 1 for state in several]))
    return numbers


def lengths(tokens: pa.ChunkedArray, finish: pa.ChunkedArray) -> Numbers:
    """`answer_tokens` and `answer_tokens_p95`, mean and 95th percentile of the agent's answers; `truncated`, the share that
    ended at the token limit. Empty if there are no answers."""
    counts = pc.list_value_length(tokens).to_numpy(zero_copy_only=False) if len(tokens) else np.zeros(0)
    if not len(counts):
        return {"truncated": 0.0}
    return {
        "answer_tokens": float(counts.mean()),
        "answer_tokens_p95": float(np.percentile(counts, 95)),
        "truncated": float(pc.mean(pc.fill_null(pc.equal(finish, Finish.LENGTH.value), False)).as_py()),
    }


@small_task()
def conversation_numbers(conversations: pa.Table) -> Numbers:
    """`described_conversations` as a task."""
    return described_conversations(conversations)


@small_task()
def response_numbers(responses: pa.Table) -> Numbers:
    """`described_responses` as a task."""
    return described_responses(responses)


@small_task()
def joined(*tables: pa.Table) -> pa.Table:
    """One table of responses, in an order that does not depend on which worker sampled which."""
    order = [("conversation_id", "ascending"), ("turn", "ascending"), ("sample", "ascending")]
    return pa.concat_tables(tables).sort_by(order)
