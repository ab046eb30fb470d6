"""Tree packing: every state of a conversation is computed once, regardless of the number of responses to it.

A history is only ever appended to, so all states of one conversation are prefixes of its longest. A row is a *trunk*, the
conversation's tokens up to the last state needed, and *branches*: responses, each attached where its state ends. A branch
token sees the trunk before its branch's attachment and its own branch up to itself, and its position continues from the
attachment. It therefore gets the hidden state that it would have in a sequence of its own.

- A row whose only branch continues the trunk's end is a *chain*, an ordinary sequence, and so is a conversation read along its
  own turns. Chains need no mask and no positions.
- At most `branch_tokens` tokens hang on one copy of a trunk. What exceeds them goes to another row with the trunk again,
  because attention in a tree costs its length squared. `branch_tokens=0` gives one plain sequence per response.
- What is read is called an *item*: a token with the slot whose hidden state predicts it (its predecessor's), or the end of a
  response with its own last slot. Items are numbered as in the tables, not as in the rows, so two layouts of the same data
  have the same items. Tokens that no item needs are not laid out.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from mtrl_ray.learner.rows.tables import Dialogues, Responses, ranges, starts_of

BRANCH_TOKENS = 384
"""Default of `branch_tokens`."""


@dataclass(frozen=True)
class Rows:
    """Rows of tokens and the items read in them.

    Rows: `tokens` int32 [slots], `starts` int64 [rows + 1] into slots, `unit` int64 [rows], the conversation that a
    row belongs to (rows of one unit are trained on together), `tree` bool [rows].
    Slots of trees: `positions` int32 [slots]; `branch` int32 [slots], 0 on the trunk; `reach` int32 [slots], how many of
    the trunk's tokens a slot sees.
    Items, ordered by row: `items` int64 [reads], their numbers; `read_slots` int64 [reads], the slot that is read;
    `read_starts` int64 [rows + 1]. By number: `targets` int32 [items], the token predicted, empty for ends and states.
    """

    tokens: np.ndarray
    starts: np.ndarray
    unit: np.ndarray
    tree: np.ndarray
    positions: np.ndarray
    branch: np.ndarray
    reach: np.ndarray
    items: np.ndarray
    read_slots: np.ndarray
    read_starts: np.ndarray
    targets: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.unit)

    @property
    def lengths(self) -> np.ndarray:
        """Slots of each row, int64 [rows]."""
        return np.diff(self.starts)

    def items_of(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of the items read in these rows, int64."""
        starts = self.read_starts[rows]
        return self.items[ranges(starts, self.read_starts[rows + 1] - starts)]


def turn_tokens(dialogues: Dialogues) -> Rows:
    """Conversations as chains; items are the agent's tokens, each read at its predecessor."""
    tokens = dialogues.agent_tokens
    conversation = np.repeat(
        dialogues.turn_conversation[dialogues.agent_turns], dialogues.turn_lengths[dialogues.agent_turns]
    )
    return replace(_chains(dialogues, conversation, tokens - 1), targets=dialogues.tokens[tokens])


def turn_ends(dialogues: Dialogues) -> Rows:
    """Conversations as chains; items are the agent's turns, each read at its last token."""
    turns = dialogues.agent_turns
    return _chains(dialogues, dialogues.turn_conversation[turns], dialogues.turn_starts[turns + 1] - 1)


def turn_states(dialogues: Dialogues) -> Rows:
    """Conversations as chains; items are the agent's turns, each read at the last token before it: its state."""
    turns = dialogues.agent_turns
    return _chains(dialogues, dialogues.turn_conversation[turns], dialogues.turn_starts[turns] - 1)


def conversation_ends(dialogues: Dialogues) -> Rows:
    """Conversations as chains; items are the conversations, each read at its last token."""
    return _chains(dialogues, np.arange(len(dialogues), dtype=np.int64), dialogues.starts[1:] - 1)


def conversation_pairs(dialogues: Dialogues) -> Rows:
    """Neighbours x, y one after the other as chains, xy and yx, both of one unit; items are these, read at their last token."""
    couples = np.arange(len(dialogues), dtype=np.int64).reshape(-1, 2)
    order = couples[:, [0, 1, 1, 0]].ravel()
    lengths = np.diff(dialogues.starts)[order]
    starts = starts_of(lengths.reshape(-1, 2).sum(axis=1))
    nothing = np.zeros(0, dtype=np.int32)
    return Rows(
        tokens=dialogues.tokens[ranges(dialogues.starts[order], lengths)],
        starts=starts,
        unit=np.arange(len(starts) - 1, dtype=np.int64) // 2,
        tree=np.zeros(len(starts) - 1, dtype=bool),
        positions=nothing,
        branch=nothing,
        reach=nothing,
        items=np.arange(len(starts) - 1, dtype=np.int64),
        read_slots=starts[1:] - 1,
        read_starts=np.arange(len(starts), dtype=np.int64),
    )


def response_tokens(dialogues: Dialogues, responses: Responses, branch_tokens: int = BRANCH_TOKENS) -> Rows:
    """Responses as branches of their conversations; items are their tokens, each read at its predecessor."""
    placed = _Placement(dialogues, responses, responses.lengths - 1, branch_tokens)
    first = placed.trunk_slot + responses.attach[placed.order] - 1
    lengths = responses.lengths[placed.order]
    items = ranges(responses.starts[placed.order], lengths)
    within = items - np.repeat(responses.starts[placed.order], lengths)
    slots = np.where(within == 0, np.repeat(first, lengths), np.repeat(placed.branch_slot, lengths) + within - 1)
    return replace(placed.rows(dialogues, responses, items, slots, lengths), targets=responses.tokens)


def response_ends(dialogues: Dialogues, responses: Responses, branch_tokens: int = BRANCH_TOKENS) -> Rows:
    """Responses as branches of their conversations; items are the responses, each read at its last token."""
    placed = _Placement(dialogues, responses, responses.lengths, branch_tokens)
    slots = placed.branch_slot + responses.lengths[placed.order] - 1
    return placed.rows(dialogues, responses, placed.order, slots, np.ones(len(responses), dtype=np.int64))


class _Placement:
    """Which row and slot each branch gets. Arrays over branches are in row order: `order` names their responses."""

    def __init__(self, dialogues: Dialogues, responses: Responses, lengths: np.ndarray, branch_tokens: int) -> None:
        self.order = np.lexsort((responses.attach, responses.conversation))
        self.lengths = lengths[self.order]
        conversation = responses.conversation[self.order]
        fresh = np.ones(len(self.order), dtype=bool)
        if branch_tokens > 0:
            before = starts_of(self.lengths)[:-1]
            begins = np.concatenate([[True], np.diff(conversation) != 0])[: len(self.order)]
            used = before - np.repeat(before[begins], np.diff(np.append(np.flatnonzero(begins), len(self.order))))
            copy = used // branch_tokens
            fresh = begins | np.concatenate([[False], np.diff(copy) != 0])[: len(self.order)]
        self.first = np.flatnonzero(fresh)
        self.row = np.cumsum(fresh) - 1
        self.conversation = conversation[self.first]
        self.trunk = np.maximum.reduceat(responses.attach[self.order], self.first) if len(self.first) else self.first
        self._place()

    def _place(self) -> None:
        """Slots of trunks and branches: rows follow each other, each its trunk first."""
        per_row = np.bincount(self.row, weights=self.lengths, minlength=len(self.trunk)).astype(np.int64)
        self.starts = starts_of(self.trunk + per_row)
        self.trunk_slot = self.starts[self.row]
        self.branch_slot = starts_of(self.lengths)[:-1] + starts_of(self.trunk)[self.row + 1]

    def _trees(self, attach: np.ndarray) -> np.ndarray:
        """Rows that are no chains: several branches, or one that does not continue the trunk's end."""
        some = self.lengths > 0
        branches = np.bincount(self.row[some], minlength=len(self.trunk))
        aside = np.bincount(self.row[some & (attach < self.trunk[self.row])], minlength=len(self.trunk))
        return (branches > 1) | (aside > 0)

    def rows(
        self, dialogues: Dialogues, responses: Responses, items: np.ndarray, slots: np.ndarray, reads: np.ndarray
    ) -> Rows:
        """The rows with their items; `reads` counts the items of each branch."""
        segments = _Segments(self, responses)
        sources = np.concatenate([dialogues.tokens, responses.tokens])
        shift = np.concatenate(
            [dialogues.starts[self.conversation], len(dialogues.tokens) + responses.starts[self.order]]
        )
        per_row = np.bincount(self.row, weights=reads, minlength=len(self.trunk)).astype(np.int64)
        return Rows(
            tokens=sources[ranges(shift[segments.order], segments.lengths)],
            starts=self.starts,
            unit=self.conversation,
            tree=self._trees(responses.attach[self.order]),
            positions=ranges(segments.attach, segments.lengths).astype(np.int32),
            branch=np.repeat(segments.branch, segments.lengths).astype(np.int32),
            reach=segments.reach(),
            items=items,
            read_slots=slots,
            read_starts=starts_of(per_row),
        )


class _Segments:
    """Trunks and branches in the order of their slots. Arrays are over segments."""

    def __init__(self, placed: _Placement, responses: Responses) -> None:
        rows, branches = len(placed.trunk), len(placed.row)
        self.order = np.argsort(np.concatenate([np.arange(rows), placed.row]), kind="stable")
        self.lengths = np.concatenate([placed.trunk, placed.lengths])[self.order]
        attach = responses.attach[placed.order]
        self.attach = np.concatenate([np.zeros(rows, dtype=np.int64), attach])[self.order]
        number = np.arange(branches) - placed.first[placed.row] + 1
        self.branch = np.concatenate([np.zeros(rows, dtype=np.int64), number])[self.order]

    def reach(self) -> np.ndarray:
        """How many trunk tokens each slot sees: a trunk token itself and those before it, a branch its state's."""
        own = ranges(np.ones_like(self.lengths), self.lengths)
        on_trunk = np.repeat(self.branch == 0, self.lengths)
        return np.where(on_trunk, own, np.repeat(self.attach, self.lengths)).astype(np.int32)


def _chains(dialogues: Dialogues, conversation: np.ndarray, read: np.ndarray) -> Rows:
    """Conversations cut after their last read; `read` int64 [items]: tokens, in order, with their `conversation`."""
    unit, reads = np.unique(conversation, return_counts=True)
    read_starts = starts_of(reads)
    lengths = read[read_starts[1:] - 1] - dialogues.starts[unit] + 1
    starts = starts_of(lengths)
    shift = np.repeat(starts[:-1] - dialogues.starts[unit], reads)
    nothing = np.zeros(0, dtype=np.int32)
    return Rows(
        tokens=dialogues.tokens[ranges(dialogues.starts[unit], lengths)],
        starts=starts,
        unit=unit,
        tree=np.zeros(len(unit), dtype=bool),
        positions=nothing,
        branch=nothing,
        reach=nothing,
        items=np.arange(len(read), dtype=np.int64),
        read_slots=read + shift,
        read_starts=read_starts,
    )
