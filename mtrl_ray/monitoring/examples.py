"""Conversations with the same contexts before and after training: how they changed, and which of them to show.

1. A conversation of the first evaluation and one of the last are a pair if context and sample are the same.
2. The examples are the largest improvements, the largest losses, and a random draw from the rest. A fixed seed decides
   ties and the draw, so a report is reproducible.
3. If only one side exists, the examples are drawn from it at random.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from mtrl_ray.dialogue.conversation import Conversation, source_name
from mtrl_ray.statistics.estimates import Estimate, paired_difference

EACH = 4
"""Number of contexts of each kind."""


class Kind(StrEnum):
    """Why a context is shown."""

    IMPROVEMENT = "improvement"
    LOSS = "loss"
    RANDOM = "random draw"


@dataclass(frozen=True)
class Example:
    """One context, before and after; a side is None if its evaluation does not exist."""

    kind: Kind
    before: Conversation | None
    after: Conversation | None

    @property
    def either(self) -> Conversation:
        """An existing side; both have the same context."""
        side = self.after or self.before
        assert side is not None
        return side


@dataclass(frozen=True)
class Comparison:
    """`difference`: mean score of end minus start over the pairs, None without pairs; counts of pairs; the examples."""

    difference: Estimate | None = None
    better: int = 0
    equal: int = 0
    worse: int = 0
    examples: list[Example] = field(default_factory=list)


Pair = tuple[Conversation, Conversation]


def compare(start: Sequence[Conversation] | None, end: Sequence[Conversation] | None, each: int = EACH) -> Comparison:
    """Pair the conversations of two evaluations and choose `each` of every kind."""
    pairs = _pairs(start or [], end or [])
    if not pairs:
        return Comparison(examples=_one_sided(start or [], end or [], 3 * each))
    changes = [after.score - before.score for before, after in pairs]
    return Comparison(
        difference=paired_difference(
            [after.score for _, after in pairs],
            [before.score for before, _ in pairs],
            clusters=[source_name(one.environment, one.split, one.context_id, one.source) for one, _ in pairs],
        ),
        better=sum(change > 0 for change in changes),
        equal=sum(change == 0 for change in changes),
        worse=sum(change < 0 for change in changes),
        examples=_choose(pairs, each),
    )


def _pairs(start: Sequence[Conversation], end: Sequence[Conversation]) -> list[Pair]:
    before = {(conversation.context_id, conversation.sample): conversation for conversation in reversed(start)}
    after = {(conversation.context_id, conversation.sample): conversation for conversation in reversed(end)}
    return [(before[key], after[key]) for key in sorted(before.keys() & after.keys())]


def _choose(pairs: list[Pair], each: int) -> list[Example]:
    rng = random.Random(0)
    shuffled = rng.sample(pairs, len(pairs))
    ranked = sorted(shuffled, key=_change, reverse=True)
    improved = [pair for pair in ranked[:each] if _change(pair) > 0]
    lost = [pair for pair in ranked[::-1][:each] if _change(pair) < 0]
    chosen = {id(pair) for pair in improved + lost}
    rest = [pair for pair in shuffled if id(pair) not in chosen][:each]
    kinds = ((Kind.IMPROVEMENT, improved), (Kind.LOSS, lost), (Kind.RANDOM, rest))
    return [Example(kind, *pair) for kind, group in kinds for pair in group]


def _change(pair: Pair) -> float:
    return pair[1].score - pair[0].score


def _one_sided(start: Sequence[Conversation], end: Sequence[Conversation], count: int) -> list[Example]:
    rng = random.Random(0)
    side = end or start
    drawn = rng.sample(list(side), min(count, len(side)))
    return [Example(Kind.RANDOM, None if end else one, one if end else None) for one in drawn]
