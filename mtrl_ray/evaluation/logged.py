"""A log's two parts, to fit on and to judge on, in a model's token ids; everything left out is reported.

1. The parts are those that the log names itself (`Conversation.split`), a second log, or a share of the log's sources drawn
   by a seed. What is judged shares no source (no context) with what is fitted: such conversations are left out of the test.
2. A conversation longer than the model's context is left out, for cut at its end it would lack its outcome, and so would
   every return before it. If asked, its beginning is cut instead: the system message and the last turns stay, and their
   returns with them.
3. A conversation that the model's chat template has no place for is left out with its cause; the others are used.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrl_ray.dialogue.conversation import Conversation, Role, completed
from mtrl_ray.dialogue.tokens import ChatFormat
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.replay.split import split_table

HELD_OUT = 0.2
"""Share of the sources that are judged if the log has no split of its own."""


@dataclass(frozen=True)
class Parts:
    """Conversations to fit and to judge, how they were told apart, and how many shared a source and were left out."""

    train: pa.Table
    test: pa.Table
    how: str
    shared: int


def parts(log: pa.Table, test: pa.Table | None, held_out: float | None, seed: int) -> Parts:
    """The log's parts. `test`: a second log; `held_out`: share of the sources to draw, None: the log's own split if it has one.

    Raises DataError if one of them is empty.
    """
    splits = set(log["split"].unique().to_pylist())
    if test is not None:
        train, how = log, "the test is a log of its own"
    elif held_out is None and splits == {"train", "test"}:
        train, test = (log.filter(pc.equal(log["split"], name)) for name in ("train", "test"))
        how = "the log's own split"
    else:
        share = HELD_OUT if held_out is None else held_out
        train, test = split_table(log, share, seed)
        how = f"{share:.0%} of the contexts, drawn by seed {seed}, are the test"
    known = set(_names(train))
    apart = np.array([name not in known for name in _names(test)], dtype=bool)
    kept = test.filter(pa.array(apart, pa.bool_()))
    if not (train.num_rows and kept.num_rows):
        why = f", after {test.num_rows} that are on contexts of the training part" if test.num_rows else ""
        raise DataError(
            f"of {log.num_rows} conversations {train.num_rows} are left to fit and {kept.num_rows} to judge{why} ({how}); "
            "give another --held-out, or a second log with --test"
        )
    return Parts(train, kept, how, int((~apart).sum()))


def _names(table: pa.Table) -> list[tuple[str, str]]:
    """Keys that must not be in both parts: environment, and source or else context."""
    names = pc.coalesce(completed(table)["source"], table["context_id"])
    return list(zip(table["environment"].to_pylist(), names.to_pylist(), strict=True))


@dataclass
class LeftOut:
    """What a model could not take: conversations (or pairs) that are too long, the longest of them in tokens, and others
    by cause; `cut` counts those whose beginning was cut. `unit`: what is counted, in the plural."""

    unit: str = "conversations"
    total: int = 0
    too_long: int = 0
    longest: int = 0
    cut: int = 0
    causes: Counter[str] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        """All that were left out."""
        return self.too_long + sum(self.causes.values())

    def sentences(self, limit: int) -> list[str]:
        """The warnings to show first; `limit`: the model's context in tokens."""
        said = []
        if self.cut:
            said.append(
                f"{self.cut} of {self.total} {self.unit} lost their beginning: they are longer than {limit} tokens"
            )
        if self.too_long:
            said.append(
                f"{self.too_long} of {self.total} {self.unit} ({self.too_long / self.total:.1%}) are left out: they are longer "
                f"than --context-length {limit}; --context-length {self.longest} keeps all of them"
            )
        if self.causes:
            cause, _ = self.causes.most_common(1)[0]
            count = sum(self.causes.values())
            said.append(
                f"{count} of {self.total} {self.unit} are left out, as the model cannot read them; mostly: {cause}"
            )
        return said


def encoded(
    talks: Iterable[Conversation], chat: ChatFormat, limit: int, cut: bool, left_out: LeftOut
) -> list[Conversation]:
    """Those of the conversations that the model can read, in its token ids, at most `limit` long; rules 2 and 3."""
    kept = []
    for talk in talks:
        left_out.total += 1
        try:
            own = chat.owned(talk)
        except (DataError, ConfigurationError) as error:
            left_out.causes[str(error).replace(repr(talk.id), "…")] += 1
            continue
        shorter = own if len(own.tokens) <= limit else ending(own, chat, limit) if cut else None
        if shorter is None:
            left_out.too_long += 1
            left_out.longest = max(left_out.longest, len(own.tokens))
        else:
            left_out.cut += shorter is not own
            kept.append(shorter)
    return kept


def ending(talk: Conversation, chat: ChatFormat, limit: int) -> Conversation | None:
    """The system message and as many of the last turns, a user's first, as fit `limit`; None if no agent's turn does.

    `talk` has the tokens of `chat`; the copy is encoded anew.
    """
    told = 1 if talk.turns[0].role == Role.SYSTEM else 0
    sizes = [len(turn.tokens) for turn in talk.turns]
    for start in range(told + 1, len(talk.turns)):
        kept = talk.turns[:told] + talk.turns[start:]
        if talk.turns[start].role != Role.USER or sum(sizes[:told]) + sum(sizes[start:]) > limit:
            continue
        if not any(turn.role == Role.AGENT for turn in kept):
            return None
        bare = [replace(turn, tokens=[], logprobs=[], versions=[]) for turn in kept]
        shorter = chat.encode(replace(talk, turns=bare))
        if len(shorter.tokens) <= limit:
            return shorter
    return None
