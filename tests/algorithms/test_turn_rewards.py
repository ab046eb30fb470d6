"""Turn rewards against the numbers of the paper's released code, naive loops, and their own identities.

`data/itpo.json` holds inputs (`mask`, `pred`: token rewards of four conversations on one context) and what the released
code makes of them in float32. Its further inputs are the constants below; its η is 0.4.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.objectives.advantages import place_at_turn_end, pooled_leave_one_out, whiten
from mtrl_ray.objectives.returns import discounted_sums
from mtrl_ray.objectives.turn_rewards import (
    dirichlet_weights,
    on_last_turn,
    pair_accuracy,
    prm_loss,
    rescaled,
    sign_accuracy,
    softmax_weights,
    td_errors,
    top_agreement,
    turn_lengths,
    turn_sums,
)
from tests.algorithms.test_advantages import SEEDS, normal, turns_of

SCORES = torch.tensor([1.0, 0.0, 1.0, 0.0])
PENALTIES = torch.tensor([-0.02, -0.01, -0.03, -0.02])
SOFT_SCORES = torch.tensor([0.3, 0.4, 0.9, 0.1])
ETA = 0.4
COEFFICIENT = 5.0
GROUP = torch.zeros(4, dtype=torch.int64)


@pytest.fixture(scope="module")
def released() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "data" / "itpo.json").read_text())


@pytest.fixture(scope="module")
def tokens(released: dict[str, Any]) -> Tensor:
    return torch.tensor(released["pred"])


@pytest.fixture(scope="module")
def mask(released: dict[str, Any]) -> Tensor:
    return torch.tensor(released["mask"]).bool()


@pytest.fixture(scope="module")
def index(mask: Tensor) -> Tensor:
    return turns_of(mask)


def rows(released: list[list[float]], turns: int = 3) -> Tensor:
    return torch.tensor([row + [0.0] * (turns - len(row)) for row in released])


def length_shares(turn_index: Tensor, mask: Tensor, turns: int) -> Tensor:
    """Each turn's share of its conversation's agent tokens, by which the released code spreads its penalties."""
    lengths = turn_lengths(turn_index, mask, turns)
    return lengths / lengths.sum(dim=1, keepdim=True).clamp_min(1)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_released_turn_sums_weights_and_length_shares(released, tokens, mask, index):
    arguments = (tokens, index, mask, 3)
    close(turn_sums(*arguments), rows(released["calculate_segment_proportions_itpo"]["prop"]))
    plain = softmax_weights(*arguments, eta=ETA, length_normalised=False)
    close(plain, rows(released["calculate_segment_proportions"]["prop"]))
    normal_form = softmax_weights(*arguments, eta=ETA, length_normalised=True)
    close(normal_form, rows(released["calculate_segment_proportions_itponorm"]["prop"]))
    for name in ("", "_itponorm", "_itpo"):
        close(length_shares(index, mask, 3), rows(released[f"calculate_segment_proportions{name}"]["len"]))
    close(length_shares(index, mask, 3), rows(released["calculate_token_proportions"]))


def test_released_losses_and_accuracies(released, tokens, mask):
    sums = torch.where(mask, tokens, 0.0).sum(dim=1)
    close(prm_loss(sums, SCORES).mean(), torch.tensor(released["ce"]))
    close(prm_loss(sums, SOFT_SCORES).mean(), torch.tensor(released["ce_soft"]))
    close(pair_accuracy(sums, SCORES, GROUP), torch.tensor(released["dpo_acc"]))
    close(sign_accuracy(sums, SCORES), torch.tensor(released["dpo_abs"]))


def released_rewards(scheme: str, tokens: Tensor, mask: Tensor, index: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What the released code takes the group's baseline from, each with its own mask: dense rewards, then the outcome."""
    present = turn_lengths(index, mask, 3) > 0
    words = PENALTIES[:, None] * length_shares(index, mask, 3)
    if scheme == "rloo_itponorm":
        weights = softmax_weights(tokens, index, mask, 3, eta=ETA, length_normalised=True)
        return [(weights * SCORES[:, None] + words, present)]
    if scheme == "rloo_itpo":
        return [(turn_sums(tokens, index, mask, 3), present), (words, present)]
    return [(tokens, mask), (words, present)]


@pytest.mark.parametrize(
    "case",
    [
        "adv|rloo_itponorm|dpo5.0|gt0.0",
        "adv|rloo_itpo|dpo5.0|gt0.0",
        "adv|rloo_itpo|dpo5.0|gt5.0",
        "adv|rloo|dpo0.0|gt5.0",
        "adv|rloo|dpo5.0|gt5.0",
    ],
)
def test_released_returns_and_advantages(released, tokens, mask, index, case):
    _, scheme, dense, outcome = case.split("|")
    present = turn_lengths(index, mask, 3) > 0
    total = torch.zeros(mask.shape)
    parts = released_rewards(scheme, tokens, mask, index) if dense == "dpo5.0" else []
    for rewards, where in parts:
        centred = COEFFICIENT * pooled_leave_one_out(rewards, where, GROUP)
        total += centred if where is mask else place_at_turn_end(centred, index, mask)
    if outcome == "gt5.0":
        centred = pooled_leave_one_out((SCORES + PENALTIES)[:, None], torch.ones(4, 1, dtype=torch.bool), GROUP)
        total += COEFFICIENT * place_at_turn_end(on_last_turn(centred[:, 0], present), index, mask)
    returns = discounted_sums(total, mask, 1.0)
    close(returns, torch.tensor(released[case]["ret"]))
    close(whiten(returns, mask), torch.tensor(released[case]["adv"]))


@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=SEEDS, eta=st.floats(0.01, 10.0), length_normalised=st.booleans())
def test_weights_are_their_definition_and_sum_to_one(masks, data, seed, eta, length_normalised):
    mask = data.draw(masks)
    index = turns_of(mask)
    (tokens,) = normal(mask, seed, torch.float64, 1)
    turns = max(int(index.max()) + 1, 1)
    weights = softmax_weights(tokens, index, mask, turns, eta, length_normalised)
    sums = turn_sums(tokens, index, mask, turns)
    spans = [[(index[row] == k).nonzero()[:, 0].tolist() for k in range(turns)] for row in range(len(mask))]
    lengths = [len(span) for row in spans for span in row if span]
    for row, columns in enumerate(spans):
        present = [k for k in range(turns) if columns[k]]
        logits = []
        for k in present:
            values = tokens[row, columns[k]].numpy()
            assert sums[row, k].item() == pytest.approx(values.sum(), abs=1e-9)
            logits.append((values.mean() * np.mean(lengths) if length_normalised else values.sum()) / eta)
        assert (weights[row, len(present) :] == 0).all()
        if present:
            softmax = np.exp(logits - np.max(logits))
            np.testing.assert_allclose(weights[row, : len(present)], softmax / softmax.sum(), atol=1e-6)
            assert weights[row].sum().item() == pytest.approx(1.0, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=SEEDS, concentration=st.floats(0.05, 20.0))
def test_random_splits_sum_to_one_and_repeat_under_their_seed(masks, data, seed, concentration):
    mask = data.draw(masks)
    index = turns_of(mask)
    present = turn_lengths(index, mask, max(int(index.max()) + 1, 1)) > 0
    first, second = (dirichlet_weights(present, concentration, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(first, second) and (first >= 0).all() and (first[~present] == 0).all()
    torch.testing.assert_close(first.sum(dim=1), present.any(dim=1).float())


def test_random_splits_have_dirichlets_moments():
    present = torch.tensor([[True, True, True, False]]).expand(20_000, 4)
    weights = dirichlet_weights(present, 2.0, torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(weights.mean(dim=0), torch.tensor([1, 1, 1, 0]).double() / 3, rtol=0, atol=5e-3)
    variance = (1 / 3) * (2 / 3) / 7
    torch.testing.assert_close(weights.var(dim=0)[:3], torch.full((3,), variance).double(), rtol=0.05, atol=0)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=SEEDS, factor=st.floats(1e-2, 1e3))
def test_rescaled_rewards_have_a_largest_return_of_one_whatever_beta_was(masks, data, seed, factor):
    mask = data.draw(masks)
    (tokens,) = normal(mask, seed, torch.float64, 1)
    tokens = -1.0 - tokens.abs()
    unit = rescaled(tokens, mask)
    if mask.any():
        assert discounted_sums(unit, mask, 1.0).abs().amax().item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(rescaled(tokens * factor, mask), unit, rtol=0, atol=1e-3)
    assert (rescaled(torch.zeros(mask.shape), mask) == 0).all()


@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=SEEDS)
def test_td_errors_are_their_definition_and_sum_to_what_the_outcome_adds(masks, data, seed):
    mask = data.draw(masks)
    index = turns_of(mask)
    present = turn_lengths(index, mask, max(int(index.max()) + 1, 1)) > 0
    (values,) = normal(present, seed, torch.float64, 1)
    outcomes = torch.rand(len(mask), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    errors = td_errors(values, present, outcomes)
    for row in range(len(mask)):
        count = int(present[row].sum())
        following = [*values[row, 1:count].tolist(), outcomes[row].item()] if count else []
        expected = [after - before for after, before in zip(following, values[row, :count].tolist(), strict=True)]
        assert errors[row].tolist() == pytest.approx(expected + [0.0] * (present.shape[1] - count), abs=1e-12)
        if count:
            assert errors[row].sum().item() == pytest.approx((outcomes[row] - values[row, 0]).item(), abs=1e-9)


def test_prefix_sums_of_an_implicit_model_are_the_values_of_its_prefixes():
    """Q(y_≤t) = β log E_ref[exp(r/β) | y_≤t] in a tree of three tokens, four steps deep, by enumeration."""
    torch.manual_seed(0)
    beta, depth, tokens = 0.3, 4, 3
    shape = (tokens,) * depth
    learned, reference = (
        [torch.randn(*shape[:step], tokens).double().log_softmax(-1) for step in range(depth)] for _ in range(2)
    )

    def prefix_reward(sequence: tuple[int, ...]) -> float:
        pairs = [(learned[t][sequence[: t + 1]], reference[t][sequence[: t + 1]]) for t in range(len(sequence))]
        return beta * float(sum(a - b for a, b in pairs))

    for length in range(depth + 1):
        for prefix in itertools.product(range(tokens), repeat=length):
            expectation = 0.0
            for rest in itertools.product(range(tokens), repeat=depth - length):
                whole = prefix + rest
                chance = sum(reference[t][whole[: t + 1]] for t in range(length, depth))
                expectation += float(torch.as_tensor(chance).exp()) * np.exp(prefix_reward(whole) / beta)
            assert beta * np.log(expectation) == pytest.approx(prefix_reward(prefix), abs=1e-12)


GROUPS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0]), st.floats(-3, 3, width=32)), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=60)
@given(drawn=GROUPS)
def test_accuracies_are_their_definitions(drawn):
    groups, outcomes, sums = (torch.tensor(column) for column in zip(*drawn, strict=True))
    means = []
    for group in {group for group, _, _ in drawn}:
        members = [(y, s) for g, y, s in drawn if g == group]
        pairs = list(itertools.combinations(members, 2))
        weight = sum(abs(a[0] - b[0]) for a, b in pairs)
        right = sum(abs(a[0] - b[0]) for a, b in pairs if (a[1] > b[1]) == (a[0] > b[0]))
        if pairs:
            means.append(right / weight if weight else 0.5)
    expected = np.mean(means) if means else 0.5
    assert pair_accuracy(sums.double(), outcomes.double(), groups).item() == pytest.approx(expected, abs=1e-9)
    signs = np.mean([np.sign(s) == np.sign(2 * y - 1) for _, y, s in drawn])
    assert sign_accuracy(sums.double(), outcomes.double()).item() == pytest.approx(signs)


def test_agreement_counts_conversations_that_have_a_record_and_a_choice():
    present = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    record = torch.tensor([[0.0, 2.0, 2.0], [1.0, 0.0, 9.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    scores = torch.tensor([[9.0, 0.0, 1.0], [3.0, 2.0, 8.0], [1.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    found, chance = top_agreement(scores, record, present)
    assert found.item() == 0.5 and chance.item() == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert all(value.isnan() for value in top_agreement(scores[3:], record[3:], present[3:]))


def test_what_cannot_be_is_refused():
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ConfigurationError, match="eta is 0"):
        softmax_weights(torch.zeros(1, 2), torch.zeros(1, 2).long(), mask, 1, eta=0.0, length_normalised=True)
    with pytest.raises(DataError, match=r"outcomes span \[0, 1.5\]"):
        prm_loss(torch.zeros(2), torch.tensor([0.0, 1.5]))
