"""Group baselines of rewards within conversations: naive loops, verl, special cases, and what makes them unbiased."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.objectives.advantages import (
    aligned_baseline,
    broadcast_turns,
    group_standardised,
    leave_one_out,
    place_at_turn_end,
    pooled_leave_one_out,
    whiten,
)
from mtrl_ray.objectives.returns import discounted_sums
from tests.algorithms.test_advantages import SEEDS, turns_of

COUNTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=9)


def conversations(drawn: list[tuple[int, int]], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, mask [conversations, turns], groups: `drawn` has each one's number of turns and group."""
    counts = torch.tensor([count for count, _ in drawn])
    mask = torch.arange(max(int(counts.max()), 1)) < counts[:, None]
    rewards = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rewards.masked_fill(~mask, 0.0), mask, torch.tensor([5 * group for _, group in drawn])


def naive(returns: Tensor, mask: Tensor, groups: Tensor, kind: str) -> Tensor:
    found = torch.zeros_like(returns)
    held = [[returns[j, min(k, int(mask[j].sum()) - 1)].item() for k in range(mask.shape[1])] for j in range(len(mask))]
    for i, k in itertools.product(range(len(mask)), range(mask.shape[1])):
        members = [j for j in range(len(mask)) if groups[j] == groups[i] and mask[j].any()]
        if not mask[i, k] or len(members) < 2:
            continue
        if kind == "rloo":
            found[i, k] = returns[i, k] - np.mean([held[j][k] for j in members if j != i])
        else:
            variance = np.mean([np.var([held[j][turn] for j in members], ddof=1) for turn in range(mask.shape[1])])
            found[i, k] = (returns[i, k] - np.mean([held[j][k] for j in members])) / (np.sqrt(variance) + 1e-6)
    return found


def aligned(returns: Tensor, mask: Tensor, groups: Tensor, kind: str) -> Tensor:
    baseline, scale = aligned_baseline(returns, mask, groups, kind)
    return torch.where(mask, (returns - baseline) * scale, 0.0)


@settings(deadline=None, max_examples=80)
@given(drawn=COUNTS, seed=SEEDS, kind=st.sampled_from(["rloo", "grpo"]))
def test_aligned_baselines_are_their_definition(drawn, seed, kind):
    rewards, mask, groups = conversations(drawn, seed)
    returns = discounted_sums(rewards, mask, 1.0)
    torch.testing.assert_close(
        aligned(returns, mask, groups, kind), naive(returns, mask, groups, kind), rtol=1e-6, atol=1e-8
    )


@settings(deadline=None, max_examples=60)
@given(drawn=COUNTS, seed=SEEDS)
def test_with_the_whole_reward_last_they_are_the_trajectories_rloo_and_grpo(drawn, seed):
    _, mask, groups = conversations(drawn, seed)
    spoken = mask.any(dim=1)
    outcomes = torch.rand(len(mask), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    returns = torch.where(mask, outcomes[:, None], 0.0)
    for kind, whole in (("rloo", leave_one_out), ("grpo", group_standardised)):
        expected = torch.zeros(len(mask), dtype=torch.float64)
        if spoken.any():
            expected[spoken] = whole(outcomes[spoken], groups[spoken])
        expected = torch.where(mask, expected[:, None], 0.0)
        torch.testing.assert_close(aligned(returns, mask, groups, kind), expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=SEEDS)
def test_shared_outcomes_on_interleaved_masks_agree_with_verl(core_algos, masks, data, seed):
    mask = data.draw(masks)
    mask = torch.cat([mask, mask])[mask.any(dim=1).repeat(2)]  # groups of two at least, nobody silent
    if len(mask) < 2:
        mask = torch.ones(2, 3, dtype=torch.bool)
    groups = torch.arange(len(mask)) % (len(mask) // 2)
    outcomes = torch.rand(len(mask), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    index = turns_of(mask)
    turns = int(index.max()) + 1
    present = torch.arange(turns) < index.amax(dim=1, keepdim=True) + 1
    last = torch.nn.functional.one_hot(present.sum(dim=1) - 1, turns) * outcomes[:, None]
    tokens = place_at_turn_end(last, index, mask)
    ours = {
        kind: broadcast_turns(aligned(discounted_sums(last, present, 1.0), present, groups, kind), index, mask)
        for kind in ("rloo", "grpo")
    }
    arguments = (tokens, mask.double(), groups.numpy())
    for kind, name in (("rloo", "compute_rloo_outcome_advantage"), ("grpo", "compute_grpo_outcome_advantage")):
        theirs, _ = getattr(core_algos, name)(*arguments)
        torch.testing.assert_close(ours[kind], theirs, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(drawn=COUNTS, seed=SEEDS)
def test_pooled_rloo_is_its_definition(drawn, seed):
    rewards, mask, groups = conversations(drawn, seed)
    found = pooled_leave_one_out(rewards, mask, groups)
    for i, k in itertools.product(range(len(mask)), range(mask.shape[1])):
        members = [j for j in range(len(mask)) if groups[j] == groups[i] and mask[j].any()]
        n, expected = len(members), 0.0
        if mask[i, k] and n > 1:
            means = [rewards[j, mask[j]].mean().item() for j in members]
            expected = rewards[i, k].item() * n / (n - 1) - sum(means) / (n - 1)
        assert found[i, k].item() == pytest.approx(expected, abs=1e-9)


def test_a_group_of_one_and_silent_conversations_have_no_advantage():
    rewards, mask, groups = conversations([(2, 0), (0, 0), (3, 1)], seed=0)
    for kind in ("rloo", "grpo"):
        assert (aligned(rewards, mask, groups, kind) == 0).all()
    assert (pooled_leave_one_out(rewards, mask, groups) == 0).all()


def test_equal_returns_give_exact_zeros_under_grpo():
    returns = torch.full((7, 3), 0.1)
    mask = torch.arange(3) < torch.tensor([1, 2, 3, 3, 2, 1, 3])[:, None]
    baseline, scale = aligned_baseline(returns, mask, torch.zeros(7), "grpo")
    assert (torch.where(mask, (returns - baseline) * scale, 0.0) == 0).all()


def score_gradients(baseline: str) -> tuple[float, float]:
    """(expected estimate, true gradient) of a one-parameter game, by enumeration of every pair of conversations.

    A policy goes on after turn 1 with probability p; each turn is worth 1. Going on is worth 1 more, so the gradient of
    the expected total by the logit of p is p (1 - p).
    """
    p = 0.3
    chances = {(False,): 1 - p, (True, False): p}
    rewards = {(False,): [1.0, 0.0], (True, False): [1.0, 1.0]}
    expected = 0.0
    for a, b in itertools.product(chances, repeat=2):
        mask = torch.tensor([[True, len(one) > 1] for one in (a, b)])
        earned = torch.tensor([rewards[a], rewards[b]], dtype=torch.float64)
        groups = torch.zeros(2)
        if baseline == "pooled":
            advantages = discounted_sums(pooled_leave_one_out(earned, mask, groups), mask, 1.0)
        else:
            advantages = aligned(discounted_sums(earned, mask, 1.0), mask, groups, "rloo")
        gradient = (1 - p) if a[0] else -p  # of log π of the first turn's choice
        expected += chances[a] * chances[b] * advantages[0, 0].item() * gradient
    return expected, p * (1 - p)


def test_the_aligned_baseline_is_unbiased_where_conversations_differ_in_length_and_the_pooled_is_not():
    estimate, truth = score_gradients("aligned")
    assert estimate == pytest.approx(truth, abs=1e-12)
    estimate, truth = score_gradients("pooled")
    assert abs(estimate - truth) > 0.1


def test_whitening_keeps_the_order():
    rewards, mask, groups = conversations([(3, 0)] * 4, seed=1)
    found = aligned(discounted_sums(rewards, mask, 1.0), mask, groups, "rloo")
    white = whiten(found, mask)
    assert (white[mask].argsort() == found[mask].argsort()).all()


def test_unknown_kinds_are_refused():
    with pytest.raises(ConfigurationError, match="'rloo' or 'grpo'"):
        aligned_baseline(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1), "ppo")
