"""What is laid out, read and masked, against sequences put together one by one."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtrl_ray.dialogue.conversation import from_table
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.rows import packing
from mtrl_ray.learner.rows.minibatches import PASS_COST, assemble, balance, share, tree_mask
from mtrl_ray.learner.rows.packing import Rows
from mtrl_ray.learner.rows.tables import Dialogues, Responses

CPU = torch.device("cpu")
LAYOUTS = [0, 7, 40, 10_000]


def path_of(rows: Rows, row: int, slot: int) -> list[int]:
    """The tokens a slot of a row sees, itself included, in the order of their positions."""
    start = int(rows.starts[row])
    length = int(rows.lengths[row])
    if not rows.tree[row]:
        return rows.tokens[start : start + slot + 1].tolist()
    branch = torch.from_numpy(rows.branch[start : start + length].astype(np.int64))[None]
    reach = torch.from_numpy(rows.reach[start : start + length].astype(np.int64))[None]
    seen = np.flatnonzero(tree_mask(branch, reach)[0, 0, slot].numpy())
    positions = rows.positions[start + seen]
    assert positions.tolist() == list(range(len(seen))), "positions have to count along the path"
    return rows.tokens[start + seen].tolist()


def reads_of(rows: Rows) -> dict[int, list[int]]:
    """For each item, the tokens that the slot it is read at sees."""
    found = {}
    for row in range(len(rows)):
        for read in range(rows.read_starts[row], rows.read_starts[row + 1]):
            slot = int(rows.read_slots[read] - rows.starts[row])
            found[int(rows.items[read])] = path_of(rows, row, slot)
    return found


@pytest.mark.parametrize("branch_tokens", LAYOUTS)
def test_every_response_token_is_predicted_from_its_own_history(
    conversations: pa.Table, responses: pa.Table, branch_tokens: int
) -> None:
    dialogues = Dialogues.read(conversations)
    rows = packing.response_tokens(dialogues, Responses.read(responses, dialogues), branch_tokens)
    by_id = {one.id: one for one in from_table(conversations)}
    histories = [by_id[row["conversation_id"]].history(row["turn"]) for row in responses.to_pylist()]
    said = responses["tokens"].to_pylist()
    expected = [
        history + tokens[:place]
        for history, tokens in zip(histories, said, strict=True)
        for place in range(len(tokens))
    ]
    assert reads_of(rows) == dict(enumerate(expected))
    assert rows.targets.tolist() == [token for tokens in said for token in tokens]


@pytest.mark.parametrize("branch_tokens", LAYOUTS)
def test_every_response_is_judged_with_its_own_history(
    conversations: pa.Table, responses: pa.Table, branch_tokens: int
) -> None:
    dialogues = Dialogues.read(conversations)
    rows = packing.response_ends(dialogues, Responses.read(responses, dialogues), branch_tokens)
    by_id = {one.id: one for one in from_table(conversations)}
    expected = [by_id[row["conversation_id"]].history(row["turn"]) + row["tokens"] for row in responses.to_pylist()]
    assert reads_of(rows) == dict(enumerate(expected))


def test_conversations_are_read_at_their_agents_tokens_turns_and_states(conversations: pa.Table) -> None:
    dialogues = Dialogues.read(conversations)
    loaded = from_table(conversations)
    tokens = [one.tokens[:place] for one in loaded for place in np.flatnonzero(one.mask)]
    assert reads_of(packing.turn_tokens(dialogues)) == dict(enumerate(tokens))
    ends = [one.history(turn + 1) for one in loaded for turn in one.agent_turns]
    assert reads_of(packing.turn_ends(dialogues)) == dict(enumerate(ends))
    states = [one.history(turn) for one in loaded for turn in one.agent_turns]
    assert reads_of(packing.turn_states(dialogues)) == dict(enumerate(states))


def test_trees_compute_shared_histories_once(conversations: pa.Table, responses: pa.Table) -> None:
    dialogues = Dialogues.read(conversations)
    found = Responses.read(responses, dialogues)
    trees = packing.response_tokens(dialogues, found, 10_000)
    sequences = packing.response_tokens(dialogues, found, 0)
    assert len(trees) == len(dialogues)
    assert len(sequences) == len(found)
    assert not sequences.tree.any()
    assert len(trees.tokens) < 0.4 * len(sequences.tokens)
    split = packing.response_tokens(dialogues, found, 20)
    branches = split.lengths - [split.reach[a:b].max() for a, b in zip(split.starts, split.starts[1:], strict=False)]
    assert branches.max() <= 20 + 5, "a row takes branches until it has reached the bound"


def test_tree_mask_against_a_loop() -> None:
    branch = torch.tensor([[0, 0, 0, 1, 1, 2, -1], [0, 0, 1, 2, 2, 2, 3]])
    reach = torch.tensor([[1, 2, 3, 2, 2, 3, 0], [1, 2, 1, 2, 2, 2, 2]])
    mask = tree_mask(branch, reach)[:, 0]
    for row in range(2):
        for query in range(7):
            for key in range(7):
                own = branch[row, query] == branch[row, key] and key <= query
                assert mask[row, query, key] == bool(own or key < reach[row, query])


@pytest.mark.parametrize("branch_tokens", LAYOUTS)
def test_hidden_states_do_not_depend_on_the_layout(
    learner: Learner, conversations: pa.Table, responses: pa.Table, branch_tokens: int
) -> None:
    dialogues = Dialogues.read(conversations)
    found = Responses.read(responses, dialogues)
    plain = learner.core.evaluate("policy", packing.response_tokens(dialogues, found, 0))
    other = learner.core.evaluate("policy", packing.response_tokens(dialogues, found, branch_tokens))
    np.testing.assert_allclose(other["logprobs"], plain["logprobs"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(other["entropies"], plain["entropies"], rtol=1e-5, atol=1e-5)


def test_logprobs_are_those_of_the_whole_sequence_alone(learner: Learner, conversations: pa.Table) -> None:
    dialogues = Dialogues.read(conversations)
    found = learner.core.evaluate("policy", packing.turn_tokens(dialogues))["logprobs"]
    expected = []
    for one in from_table(conversations):
        with torch.no_grad():
            logits = learner.core.models.network(torch.tensor([one.tokens])).logits[0]
        places = np.flatnonzero(one.mask)
        logprobs = logits.log_softmax(-1)[places - 1, torch.tensor(one.tokens)[places]]
        expected += logprobs.tolist()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_chains_reach_attention_without_a_mask(
    learner: Learner, conversations: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(*arguments: object, **options: object) -> torch.Tensor:
        calls.append((options["attn_mask"], options["is_causal"]))
        return attention(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    learner.core.evaluate("policy", packing.turn_tokens(Dialogues.read(conversations)))
    assert calls
    assert all(mask is None and causal for mask, causal in calls)


lengths = st.lists(st.integers(1, 60), min_size=1, max_size=30)


def some_rows(sizes: list[int], trees: list[bool]) -> Rows:
    starts = np.concatenate([[0], np.cumsum(sizes)])
    slots = np.zeros(starts[-1], dtype=np.int32)
    count = len(sizes)
    reads = np.arange(count)
    return Rows(
        slots, starts, reads // 2, np.array(trees), slots, slots, slots, reads, starts[1:] - 1, np.arange(count + 1)
    )


@given(sizes=lengths, world=st.integers(1, 4), budget=st.integers(1, 200), data=st.data())
def test_shares_cover_the_rows_once_within_the_budget(
    sizes: list[int], world: int, budget: int, data: st.DataObject
) -> None:
    trees = data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    rows = some_rows(sizes, trees)
    parts = [part for rank in range(world) for part in share(rows, np.arange(len(sizes)), rank, world, budget)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(sizes)))
    for part in parts:
        assert len(part) == 1 or len(part) * rows.lengths[part].max() <= budget
        assert len(set(rows.tree[part].tolist())) == 1


@given(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=8), budget=st.integers(50, 900))
def test_micro_batches_are_the_cheapest_cut(sizes: list[int], budget: int) -> None:
    rows = some_rows(sizes, [False] * len(sizes))
    ordered = sorted(sizes)

    def cost(groups: list[list[int]]) -> float:
        if any(len(group) > 1 and len(group) * max(group) > budget for group in groups):
            return float("inf")
        return sum(len(group) * max(group) + PASS_COST for group in groups)

    def cuts(rest: list[int]) -> list[list[list[int]]]:
        if not rest:
            return [[]]
        return [[rest[:end], *more] for end in range(1, len(rest) + 1) for more in cuts(rest[end:])]

    found = [rows.lengths[part].tolist() for part in share(rows, np.arange(len(sizes)), 0, 1, budget)]
    assert cost(found) == min(cost(groups) for groups in cuts(ordered))


def test_shares_are_balanced() -> None:
    sizes = np.random.default_rng(0).integers(20, 200, 64)
    rows = some_rows(sizes.tolist(), [False] * 64)
    tokens = [sum(rows.lengths[part].sum() for part in share(rows, np.arange(64), rank, 2, 4096)) for rank in (0, 1)]
    assert abs(tokens[0] - tokens[1]) < 200


@given(sizes=lengths, parts=st.integers(1, 6), seed=st.integers(0, 9))
def test_minibatches_keep_units_together_and_tokens_even(sizes: list[int], parts: int, seed: int) -> None:
    rows = some_rows(sizes, [False] * len(sizes))
    units = np.random.default_rng(seed).permutation(np.unique(rows.unit))
    found = balance(rows, units, parts)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(sizes)))
    owners = [set(rows.unit[part].tolist()) for part in found]
    assert sum(len(owner) for owner in owners) == len(units)
    heaviest = max(np.bincount(rows.unit, weights=rows.lengths))
    assert max(rows.lengths[part].sum() for part in found) <= sum(sizes) / parts + 2 * heaviest


def test_padding_is_read_by_nobody(learner: Learner, conversations: pa.Table) -> None:
    rows = packing.turn_tokens(Dialogues.read(conversations))
    batch = assemble(rows, np.arange(len(rows)), CPU)
    width = batch.inputs.tokens.shape[1]
    assert bool((batch.slots % width < torch.from_numpy(rows.lengths)[batch.slots // width]).all())
    assert batch.items.tolist() == list(range(len(rows.items)))
