"""Returns and Q targets against double loops written from the definitions and against RLlib."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.objectives.returns import discounted_sums, expected_backup_targets, monte_carlo_returns, td_lambda_targets

DTYPES = st.sampled_from([torch.float32, torch.float64])
UNIT = st.one_of(st.sampled_from([0.0, 1.0, 0.95, 0.999]), st.floats(0.0, 1.0))
SEEDS = st.integers(0, 2**32 - 1)


def normal(mask: Tensor, seed: int, dtype: torch.dtype, count: int) -> list[Tensor]:
    """`count` tensors of the mask's shape, NaN outside the mask: reading there would show."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(count, *mask.shape, generator=generator, dtype=dtype)
    return list(draws.masked_fill(~mask, torch.nan))


def per_row(mask: Tensor, compute) -> Tensor:
    """Fills the masked entries of each row with compute(row, columns of its agent entries), in float64."""
    out = torch.zeros(mask.shape, dtype=torch.float64)
    for row in range(mask.shape[0]):
        columns = mask[row].nonzero()[:, 0].tolist()
        for column, value in zip(columns, compute(row, columns), strict=True):
            out[row, column] = float(value)
    return out


def assert_matches(ours: Tensor, reference: Tensor, dtype: torch.dtype) -> None:
    assert ours.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(ours.double(), reference.double(), rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=SEEDS, gamma=UNIT, dtype=DTYPES)
def test_monte_carlo_is_the_discounted_sum_of_later_rewards(masks, data, seed, gamma, dtype):
    mask = data.draw(masks)
    (rewards,) = normal(mask, seed, dtype, 1)

    def definition(row, columns):
        r = rewards[row, columns].tolist()
        return [sum(gamma**k * r[j + k] for k in range(len(r) - j)) for j in range(len(r))]

    assert_matches(monte_carlo_returns(rewards, mask, gamma), per_row(mask, definition), dtype)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=SEEDS, gamma=UNIT)
def test_monte_carlo_agrees_with_rllib(masks, data, seed, gamma):
    from ray.rllib.evaluation.postprocessing import discount_cumsum

    mask = data.draw(masks)
    (rewards,) = normal(mask, seed, torch.float64, 1)
    reference = per_row(mask, lambda row, columns: discount_cumsum(rewards[row, columns].numpy(), gamma))
    assert_matches(monte_carlo_returns(rewards, mask, gamma), reference, torch.float64)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=SEEDS, gamma=UNIT, lam=UNIT, cut=st.booleans(), dtype=DTYPES)
def test_td_lambda_is_the_forward_view(masks, data, seed, gamma, lam, cut, dtype):
    """G^λ_j = (1-λ) Σ_n λ^{n-1} G^(n)_j + λ^{N-1} G^(N)_j over the N n-step returns that the conversation allows."""
    mask = data.draw(masks)
    rewards, q = normal(mask, seed, dtype, 2)
    last = torch.randn(mask.shape[0], generator=torch.Generator().manual_seed(seed), dtype=dtype) if cut else None

    def definition(row, columns):
        r, following = rewards[row, columns].tolist(), q[row, columns].tolist()[1:]
        following.append(last[row].item() if cut else 0.0)
        targets = []
        for j in range(len(r)):
            steps, reward = [], 0.0
            for n in range(1, len(r) - j + 1):
                reward += gamma ** (n - 1) * r[j + n - 1]
                steps.append(reward + gamma**n * following[j + n - 1])
            mixed = sum((1 - lam) * lam**n * step for n, step in enumerate(steps[:-1]))
            targets.append(mixed + lam ** (len(steps) - 1) * steps[-1])
        return targets

    if mask.sum(dim=1).max() > 70:  # the definition is quadratic
        mask = mask & (mask.cumsum(dim=1) <= 70)
    assert_matches(td_lambda_targets(rewards, q, mask, gamma, lam, last), per_row(mask, definition), dtype)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=SEEDS, gamma=UNIT, lam=UNIT)
def test_td_lambda_agrees_with_rllib(masks, data, seed, gamma, lam):
    from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets

    mask = data.draw(masks)
    rewards, q = normal(mask, seed, torch.float32, 2)

    def rllib(row, columns):
        ended = np.arange(len(columns)) == len(columns) - 1
        r, v = rewards[row, columns].numpy(), q[row, columns].numpy()
        return compute_value_targets(v, r, ended.astype(float), np.zeros(len(columns)), gamma, lam)

    assert_matches(td_lambda_targets(rewards, q, mask, gamma, lam), per_row(mask, rllib), torch.float32)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=SEEDS, gamma=UNIT)
def test_lambda_one_is_monte_carlo_and_lambda_zero_is_sarsa(masks, data, seed, gamma):
    mask = data.draw(masks)
    rewards, q = normal(mask, seed, torch.float64, 2)
    monte_carlo = monte_carlo_returns(rewards, mask, gamma)
    torch.testing.assert_close(td_lambda_targets(rewards, q, mask, gamma, 1.0), monte_carlo)

    def sarsa(row, columns):
        r, following = rewards[row, columns], torch.cat([q[row, columns][1:], torch.zeros(1)])
        return (r + gamma * following[: len(columns)]).tolist()

    torch.testing.assert_close(td_lambda_targets(rewards, q, mask, gamma, 0.0), per_row(mask, sarsa))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=SEEDS, gamma=UNIT, cut=st.booleans(), dtype=DTYPES)
def test_expected_backup_reads_the_next_state_except_after_the_last_turn(masks, data, seed, gamma, cut, dtype):
    mask = data.draw(masks)
    rewards, v_next = normal(mask, seed, dtype, 2)
    last = torch.arange(1.0, mask.shape[0] + 1, dtype=dtype) if cut else None

    def definition(row, columns):
        v = [*v_next[row, columns].tolist()[:-1], last[row].item() if cut else 0.0]
        return [r + gamma * value for r, value in zip(rewards[row, columns].tolist(), v, strict=False)]

    assert_matches(expected_backup_targets(rewards, v_next, mask, gamma, last), per_row(mask, definition), dtype)


def test_sarsa_is_the_expected_backup_with_the_next_pairs_value_as_the_state_value():
    rewards, q = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.3, 0.5, 0.9]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    expected = torch.tensor([[0.45, 0.81, 1.0]])
    torch.testing.assert_close(td_lambda_targets(rewards, q, mask, 0.9, 0.0), expected)
    torch.testing.assert_close(expected_backup_targets(rewards, q.roll(-1, 1), mask, 0.9), expected)


def test_a_bootstrapped_cut_continues_the_whole_conversation():
    """Cutting a conversation in two and bootstrapping the first half with the second's return changes nothing."""
    rewards = torch.randn(3, 20, dtype=torch.float64)
    mask = torch.ones(3, 20, dtype=torch.bool)
    whole = monte_carlo_returns(rewards, mask, 0.9)
    head, tail = mask.clone(), mask.clone()
    head[:, 12:], tail[:, :12] = False, False
    second = monte_carlo_returns(rewards, tail, 0.9)
    first = td_lambda_targets(rewards, torch.zeros_like(rewards), head, 0.9, 1.0, bootstrap_last=second[:, 12])
    torch.testing.assert_close(first + second, whole)


def test_targets_carry_no_gradient_and_empty_batches_pass():
    rewards = torch.randn(2, 3, requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    assert not td_lambda_targets(rewards, rewards, mask, 0.9, 0.5).requires_grad
    assert not expected_backup_targets(rewards, rewards, mask, 0.9).requires_grad
    for shape in [(0, 4), (3, 0)]:
        empty = torch.zeros(shape)
        assert td_lambda_targets(empty, empty, empty.bool(), 0.9, 0.5).shape == shape
        assert discounted_sums(empty, empty.bool(), 1.0).shape == shape


def test_slips_are_named():
    rewards, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ConfigurationError, match=r"lam is 1\.5"):
        td_lambda_targets(rewards, rewards, mask, 0.9, 1.5)
    with pytest.raises(ConfigurationError, match=r"discount is -0\.1"):
        monte_carlo_returns(rewards, mask, -0.1)
    with pytest.raises(ValueError, match=r"q has shape \[2, 1\]"):
        td_lambda_targets(rewards, torch.zeros(2, 1), mask, 0.9, 0.5)
    with pytest.raises(ValueError, match="has to be bool"):
        monte_carlo_returns(rewards, mask.float(), 0.9)
    with pytest.raises(ValueError, match=r"shape \[3\]"):
        expected_backup_targets(rewards, rewards, mask, 0.9, torch.zeros(3))
