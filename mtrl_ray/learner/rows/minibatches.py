"""From rows to minibatches, to each process's micro-batches, to tensors.

A pass over the rows is cut into minibatches of about equally many tokens. The conversations come in random order, and the
rows of one conversation stay together.

A minibatch is divided among the processes: its rows are sorted by length, chains and trees apart, and every process takes a
run of neighbours of about equal token count. It cuts its run into micro-batches where the padding saved outweighs another
pass: the exact optimum, by dynamic programming over the sorted rows, of padded tokens plus `PASS_COST` tokens per
micro-batch. A micro-batch's padded tokens stay within the budget; a single longer row goes alone. All this depends only on
the lengths: the same rows give the same micro-batches everywhere.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtrl_ray.learner.rows.packing import Rows
from mtrl_ray.learner.rows.tables import ranges, starts_of
from mtrl_ray.models.inputs import ModelInputs

PASS_COST = 96
"""Fixed cost of one more micro-batch, in tokens: what a tiny model could compute in the time its layers' calls take."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows as tensors. `slots`: int64 [reads] into the flattened `[rows * slots]` of `inputs`; `items`: int64 [reads].

    `targets`: int64 [reads], the token predicted at each slot; empty if nothing is predicted.
    """

    inputs: ModelInputs
    slots: Tensor
    items: Tensor
    targets: Tensor


def minibatches(rows: Rows, generator: np.random.Generator, size: int) -> list[np.ndarray]:
    """One pass in random order: row numbers of minibatches of about `size` conversations and equally many tokens."""
    units = np.unique(rows.unit)
    return balance(rows, generator.permutation(units), -(-len(units) // size))


def balance(rows: Rows, units: np.ndarray, parts: int) -> list[np.ndarray]:
    """Row numbers of `parts` minibatches: the units, in the order given, dealt so that tokens are about equal.

    `units`: the conversations in random order. Rows of one unit stay together; minibatches without rows are left out.
    """
    weight = np.bincount(rows.unit, weights=rows.lengths, minlength=int(units.max(initial=-1)) + 1)[units]
    number = np.zeros(int(units.max(initial=-1)) + 1, dtype=np.int64)
    edges = starts_of(weight.astype(np.int64))
    number[units] = (edges[:-1] + edges[1:]) * parts // max(2 * int(edges[-1]), 1)
    chosen = number[rows.unit]
    groups = [np.flatnonzero(chosen == part) for part in range(parts)]
    return [group for group in groups if len(group)]


def share(rows: Rows, selection: np.ndarray, rank: int, world: int, budget: int) -> list[np.ndarray]:
    """One process's micro-batches of the rows of `selection`: arrays of row numbers, at most `budget` padded tokens."""
    ordered = selection[np.lexsort((selection, rows.lengths[selection], rows.tree[selection]))]
    middle = np.cumsum(rows.lengths[ordered]) - rows.lengths[ordered] / 2
    total = int(rows.lengths[ordered].sum())
    mine = ordered[(middle * world // max(total, 1)).astype(np.int64) == rank]
    kinds = [mine[~rows.tree[mine]], mine[rows.tree[mine]]]
    return [part for kind in kinds if len(kind) for part in _partition(kind, rows.lengths[kind], budget)]


def _partition(ordered: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Consecutive groups of rows (lengths ascending) of least padded tokens plus `PASS_COST` each."""
    count = len(ordered)
    cost = np.full(count + 1, np.inf)
    cost[0] = 0.0
    cut = np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        longest = int(lengths[end - 1])
        first = max(0, end - max(1, budget // max(longest, 1)))
        totals = cost[first:end] + np.arange(end - first, 0, -1) * longest
        best = int(totals.argmin())
        cut[end], cost[end] = first + best, totals[best] + PASS_COST
    groups = []
    end = count
    while end:
        groups.append(ordered[cut[end] : end])
        end = int(cut[end])
    return groups[::-1]


def assemble(rows: Rows, part: np.ndarray, device: torch.device) -> MicroBatch:
    """The tensors of one micro-batch; `part`: row numbers, all chains or all trees."""
    lengths = rows.lengths[part]
    width = int(lengths.max())
    filled = np.arange(width) < lengths[:, None]
    source = ranges(rows.starts[part], lengths)
    counts = rows.read_starts[part + 1] - rows.read_starts[part]
    reads = ranges(rows.read_starts[part], counts)
    slots = rows.read_slots[reads] + np.repeat(np.arange(len(part)) * width - rows.starts[part], counts)
    tokens = _padded(rows.tokens[source], filled, 0, device)
    inputs = ModelInputs(tokens)
    if rows.tree[part[0]]:
        branch = _padded(rows.branch[source], filled, -1, device)
        reach = _padded(rows.reach[source], filled, 0, device)
        inputs = ModelInputs(tokens, tree_mask(branch, reach), _padded(rows.positions[source], filled, 0, device))
    items = rows.items[reads]
    targets = rows.targets[items] if len(rows.targets) else rows.targets
    return MicroBatch(inputs, _tensor(slots, device), _tensor(items, device), _tensor(targets, device))


def tree_mask(branch: Tensor, reach: Tensor) -> Tensor:
    """The attention mask, True if a slot attends to another, bool [rows, 1, slots, slots].

    branch: int64 [rows, slots], 0 on the trunk, -1 on padding; reach: int64 [rows, slots], trunk tokens seen. A slot
    sees the trunk's first `reach` tokens and what came before it on its own branch, itself included.
    """
    slot = torch.arange(branch.shape[1], device=branch.device)
    own = (branch[:, :, None] == branch[:, None, :]) & (slot <= slot[:, None])
    return (own | (slot < reach[:, :, None]))[:, None]


def _padded(values: np.ndarray, filled: np.ndarray, empty: int, device: torch.device) -> Tensor:
    padded = np.full(filled.shape, empty, dtype=np.int64)
    padded[filled] = values
    return torch.from_numpy(padded).to(device)


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(device)
