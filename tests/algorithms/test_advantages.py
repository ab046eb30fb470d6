"""Advantages against double loops written from the definitions, RLlib and verl, and against their own identities."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtrl_ray.objectives.advantages import (
    batch_baseline,
    broadcast_turns,
    gae,
    group_centred,
    group_standardised,
    leave_one_out,
    moments,
    place_at_turn_end,
    turn_gae,
    whiten,
    whiten_with,
)
from mtrl_ray.objectives.returns import discounted_sums

DTYPES = st.sampled_from([torch.float32, torch.float64])
UNIT = st.one_of(st.sampled_from([0.0, 1.0, 0.95, 0.999]), st.floats(0.0, 1.0))
SEEDS = st.integers(0, 2**32 - 1)


def normal(mask: Tensor, seed: int, dtype: torch.dtype, count: int, outside: float = torch.nan) -> list[Tensor]:
    """`count` tensors of the mask's shape, `outside` where nothing may be read."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, *mask.shape, generator=generator, dtype=dtype).masked_fill(~mask, outside))


def naive_gae(rewards, values, mask, gamma, lam, last) -> tuple[Tensor, Tensor]:
    """A_t = Σ_l (γλ)^l δ_{t+l}, the l-th next *agent* token counting as l."""
    advantages = torch.zeros(mask.shape, dtype=torch.float64)
    for row in range(mask.shape[0]):
        columns = mask[row].nonzero()[:, 0].tolist()
        r, v = rewards[row, columns].tolist(), [*values[row, columns].tolist(), last[row].item()]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        for t, column in enumerate(columns):
            advantages[row, column] = sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(r)))
    return advantages, torch.where(mask, advantages + values.double(), 0.0)


@settings(deadline=None, max_examples=80)
@given(data=st.data(), seed=SEEDS, gamma=UNIT, lam=UNIT, dtype=DTYPES, cut=st.booleans())
def test_gae_is_its_definition_on_the_agents_tokens(masks, data, seed, gamma, lam, dtype, cut):
    mask = data.draw(masks)
    rewards, values = normal(mask, seed, dtype, 2)
    last = torch.linspace(-1.0, 2.0, mask.shape[0], dtype=dtype) * cut
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    reference = naive_gae(rewards, values, mask, gamma, lam, last)
    for estimator in (gae, turn_gae):
        for ours, definition in zip(estimator(rewards, values, mask, gamma, lam, last), reference, strict=True):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.double(), definition, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=SEEDS, gamma=UNIT, lam=UNIT, last=st.floats(-3.0, 3.0))
def test_gae_agrees_with_rllib(masks, data, seed, gamma, lam, last):
    from ray.rllib.evaluation.postprocessing import compute_advantages
    from ray.rllib.policy.sample_batch import SampleBatch
    from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets

    mask = data.draw(masks)
    rewards, values = normal(mask, seed, torch.float32, 2)
    ended, cut = gae(rewards, values, mask, gamma, lam), gae(rewards, values, mask, gamma, lam, last)
    for row in range(mask.shape[0]):
        agent = mask[row]
        r, v = rewards[row, agent].numpy(), values[row, agent].numpy()
        if not len(r):
            continue
        terminal = np.eye(len(r))[-1]
        targets = compute_value_targets(v, r, terminal, np.zeros(len(r)), gamma, lam)
        np.testing.assert_allclose(ended[1][row, agent], targets, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ended[0][row, agent], targets - v, rtol=1e-5, atol=1e-5)
        batch = compute_advantages(SampleBatch({"rewards": r, "vf_preds": v}), last, gamma, lam)
        np.testing.assert_allclose(cut[0][row, agent], batch["advantages"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(cut[1][row, agent], batch["value_targets"], rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=SEEDS, gamma=UNIT, lam=UNIT)
def test_gae_agrees_with_verl_on_interleaved_masks(core_algos, masks, data, seed, gamma, lam):
    mask = data.draw(masks)
    if mask.sum() < 2:  # verl whitens, and cannot with one token
        mask = torch.ones(1, 2, dtype=torch.bool)
    rewards, values = normal(mask, seed, torch.float64, 2, outside=0.0)
    whitened, returns = core_algos.compute_gae_advantage_return(rewards, values, mask.double(), gamma, lam)
    ours, targets = gae(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(targets[mask], returns[mask])
    torch.testing.assert_close(whiten(ours, mask)[mask], whitened[mask], rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=SEEDS)
def test_without_discount_advantage_plus_value_is_the_sum_of_later_rewards(masks, data, seed):
    mask = data.draw(masks)
    rewards, values = normal(mask, seed, torch.float64, 2, outside=0.0)
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    reverse_cumsum = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages + values, torch.where(mask, reverse_cumsum, 0.0))
    torch.testing.assert_close(returns, torch.where(mask, reverse_cumsum, 0.0))


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=SEEDS, gamma=UNIT, lams=st.tuples(UNIT, UNIT))
def test_advantages_grow_with_lambda_where_every_td_error_is_positive(masks, data, seed, gamma, lams):
    mask = data.draw(masks)
    deltas, values = normal(mask, seed, torch.float64, 2, outside=0.0)
    following = gae(torch.zeros_like(values), values, mask, 1.0, 0.0)[1]  # the value of each token's next agent token
    rewards = deltas.abs() - gamma * following + values
    low, high = (gae(rewards, values, mask, gamma, lam)[0] for lam in sorted(lams))
    assert (high >= low - 1e-12).all()


@settings(deadline=None, max_examples=20)
@given(data=st.data(), seed=SEEDS)
def test_user_spans_and_the_order_of_rows_make_no_difference(masks, data, seed):
    mask = data.draw(masks)
    rewards, values = normal(mask, seed, torch.float64, 2)
    last = torch.randn(mask.shape[0], dtype=torch.float64)
    advantages, _ = gae(rewards, values, mask, 0.9, 0.8, last)
    order = torch.randperm(mask.shape[0], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        gae(rewards[order], values[order], mask[order], 0.9, 0.8, last[order])[0], advantages[order]
    )
    for row in range(mask.shape[0]):
        agent = mask[row]
        alone = gae(
            rewards[row : row + 1, agent], values[row : row + 1, agent], agent[agent][None], 0.9, 0.8, last[row]
        )
        torch.testing.assert_close(alone[0][0], advantages[row, agent])


def test_gae_is_a_target_and_ignores_autocast():
    rewards, values = torch.randn(4, 300), torch.randn(4, 300, requires_grad=True)
    mask = torch.rand(4, 300) < 0.7
    plain = gae(rewards, values, mask, 1.0, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = gae(rewards, values, mask, 1.0, 1.0)
    assert not plain[0].requires_grad
    assert not plain[1].requires_grad
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


SCORES = st.lists(
    st.tuples(st.integers(-3, 3), st.floats(-5.0, 5.0, width=32, allow_subnormal=False)), min_size=1, max_size=24
)


def grouped(drawn: list[tuple[int, float]], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.tensor([x for _, x in drawn], dtype=dtype), torch.tensor([7 * group for group, _ in drawn])


@settings(deadline=None, max_examples=80)
@given(drawn=SCORES)
def test_group_baselines_are_their_definitions(drawn):
    scores, groups = grouped(drawn)
    for i in range(len(scores)):
        members = [scores[j].item() for j in range(len(scores)) if groups[j] == groups[i]]
        others = [scores[j].item() for j in range(len(scores)) if groups[j] == groups[i] and j != i]
        x, mean = scores[i].item(), np.mean(members)
        assert group_centred(scores, groups)[i].item() == pytest.approx(x - mean, abs=1e-9)
        expected = x - np.mean(others) if others else 0.0
        assert leave_one_out(scores, groups)[i].item() == pytest.approx(expected, abs=1e-9)
        expected = (x - mean) / (np.std(members, ddof=1) + 1e-6) if others else 0.0
        assert group_standardised(scores, groups)[i].item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(drawn=SCORES)
def test_group_baselines_agree_with_verl(core_algos, drawn):
    # verl gives a group of one its raw score; ours gives zero, so every group gets a second member here
    scores, groups = grouped(drawn + [(group, 0.25) for group in {group for group, _ in drawn}])
    ones, index = torch.ones(len(scores), 1), groups.numpy()

    def verl(name: str, **options) -> Tensor:
        return getattr(core_algos, name)(scores[:, None].clone(), ones, index, **options)[0][:, 0]

    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(group_standardised(scores, groups), verl("compute_grpo_outcome_advantage"), **close)
    dr_grpo = verl("compute_grpo_outcome_advantage", norm_adv_by_std_in_grpo=False)
    torch.testing.assert_close(group_centred(scores, groups), dr_grpo, **close)
    for name in ("compute_rloo_outcome_advantage", "compute_rloo_vectorized_outcome_advantage"):
        torch.testing.assert_close(leave_one_out(scores, groups), verl(name), **close)


@settings(deadline=None, max_examples=50)
@given(drawn=SCORES, offset=st.floats(-100.0, 100.0), seed=SEEDS)
def test_group_baselines_ignore_offsets_follow_permutations_and_sum_to_zero(drawn, offset, seed):
    scores, groups = grouped(drawn)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    _, index, size = groups.unique(return_inverse=True, return_counts=True)
    for estimator in (group_standardised, group_centred, leave_one_out):
        plain = estimator(scores, groups)
        torch.testing.assert_close(estimator(scores + offset * groups, groups), plain, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(estimator(scores[order], groups[order]), plain[order])
        assert torch.zeros(len(size)).double().index_add(0, index, plain).abs().max() < 1e-6
        assert (plain[(size == 1)[index]] == 0).all()
    n = size[index].double()
    unbiased = group_centred(scores, groups) * torch.where(n > 1, n / (n - 1), 1.0)
    torch.testing.assert_close(leave_one_out(scores, groups), unbiased)


def test_equal_scores_give_exact_zeros_in_float32():
    """The mean of seven 0.1 is not 0.1 in float32; over a vanishing deviation the difference would look like signal."""
    scores, groups = torch.full((7,), 0.1), torch.zeros(7, dtype=torch.long)
    assert (group_standardised(scores, groups) == 0).all()
    assert (group_standardised(scores + 1e6, groups) == 0).all()


@settings(deadline=None, max_examples=50)
@given(data=st.data(), seed=SEEDS, dtype=DTYPES, shards=st.integers(1, 4))
def test_whitening_in_shards_is_whitening_at_once(masks, data, seed, dtype, shards):
    mask = data.draw(masks)
    (x,) = normal(mask, seed, dtype, 1)
    x = 3.0 * x + 10.0
    whole = whiten(x, mask)
    parts = list(zip(x.tensor_split(shards), mask.tensor_split(shards), strict=True))
    sums = torch.stack([moments(*part) for part in parts]).sum(dim=0)
    torch.testing.assert_close(torch.cat([whiten_with(*part, sums) for part in parts]), whole)
    torch.testing.assert_close(torch.cat([whiten(*part, sums) for part in parts]), whole)
    assert (whole[~mask] == 0).all()
    entries = x[mask].double()
    if len(entries) > 1:
        definition = (entries - entries.mean()) / (entries.var() + 1e-8).sqrt()
        torch.testing.assert_close(whole[mask].double(), definition, rtol=1e-5, atol=1e-5)
    else:
        assert (whole == 0).all()


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=SEEDS, gamma=UNIT)
def test_whitened_returns_are_verls_reinforce_plus_plus(core_algos, masks, data, seed, gamma):
    mask = data.draw(masks)
    if mask.sum() < 2:
        mask = torch.ones(3, 1, dtype=torch.bool)
    (rewards,) = normal(mask, seed, torch.float64, 1, outside=0.0)
    config = type("Config", (), {"gamma": gamma})()
    reference, sums = core_algos.compute_reinforce_plus_plus_outcome_advantage(rewards, mask.double(), config)
    ours = discounted_sums(rewards, mask, gamma)
    torch.testing.assert_close(ours, sums)
    torch.testing.assert_close(whiten(ours, mask), reference, rtol=1e-6, atol=1e-6)


def test_the_batch_baseline_standardises_over_contexts():
    scores = torch.tensor([1.0, 0.0, 3.0, 8.0], dtype=torch.float64)
    expected = (scores - 3.0) / (38.0 / 3.0 + 1e-8) ** 0.5
    torch.testing.assert_close(batch_baseline(scores), expected)
    assert batch_baseline(torch.tensor([4.0])).tolist() == [0.0]


def turns_of(mask: Tensor) -> Tensor:
    """Number of the agent span each token belongs to; rubbish outside the mask."""
    starts = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    return torch.where(mask, starts.cumsum(dim=1) - 1, -99)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=SEEDS, padding=st.integers(0, 2), dtype=DTYPES)
def test_turn_values_reach_their_tokens(masks, data, seed, padding, dtype):
    mask = data.draw(masks)
    index = turns_of(mask)
    counts = index.amax(dim=1).clamp_min(-1) + 1
    turns = int(counts.max()) + padding
    present = torch.arange(turns) < counts[:, None]
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*present.shape, generator=generator, dtype=dtype).masked_fill(~present, 0.0)
    spread, placed = broadcast_turns(values, index, mask), place_at_turn_end(values, index, mask)
    assert spread.dtype == placed.dtype == dtype
    for row in range(mask.shape[0]):
        columns = mask[row].nonzero()[:, 0].tolist()
        wide, ends = torch.zeros(mask.shape[1], dtype=dtype), torch.zeros(mask.shape[1], dtype=dtype)
        for column in columns:
            wide[column] = values[row, index[row, column]]
        for turn in range(int(counts[row])):
            ends[max(column for column in columns if index[row, column] == turn)] = values[row, turn]
        assert torch.equal(spread[row], wide)
        assert torch.equal(placed[row], ends)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=SEEDS)
def test_token_returns_of_turn_rewards_are_the_turns_returns(masks, data, seed):
    """Rewards on turn ends, summed over tokens, are the turns' own sums broadcast to tokens."""
    mask = data.draw(masks)
    index = turns_of(mask)
    turns = torch.arange(max(int(index.max()) + 1, 1)) < (index.amax(dim=1, keepdim=True).clamp_min(-1) + 1)
    (rewards,) = normal(turns, seed, torch.float64, 1, outside=0.0)
    over_tokens = discounted_sums(place_at_turn_end(rewards, index, mask), mask, 1.0)
    over_turns = broadcast_turns(discounted_sums(rewards, turns, 1.0), index, mask)
    torch.testing.assert_close(over_tokens, over_turns)


def test_turn_slips_are_named():
    mask = torch.tensor([[True, True, False]])
    with pytest.raises(ValueError, match="outside the 1 turns"):
        broadcast_turns(torch.ones(1, 1), torch.tensor([[0, 1, 0]]), mask)
    with pytest.raises(ValueError, match="without agent tokens has a reward"):
        place_at_turn_end(torch.ones(1, 2), torch.tensor([[0, 0, 1]]), mask)
    with pytest.raises(ValueError, match="both have to be"):
        leave_one_out(torch.zeros(3, 1), torch.zeros(3))
