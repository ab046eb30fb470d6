"""Losses against double loops written from the definitions, verl, exact expectations and numerical gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.objectives.losses import (
    LOG_RATIO_BOUND,
    clipped_surrogate,
    kl_estimate,
    local_denominator,
    masked_mean,
    reinforce_loss,
    token_weights,
    truncated_importance_weights,
)

DTYPES = st.sampled_from([torch.float32, torch.float64])
HOW = st.sampled_from(["token", "conversation"])
SEEDS = st.integers(0, 2**32 - 1)
CLIPS = st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.5]), st.sampled_from([0.0, 0.2, 0.28, 1.0]))


def normal(shape, seed: int, count: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return list(torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype))


@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=SEEDS, how=HOW, dtype=DTYPES)
def test_masked_mean_is_its_definition(masks, data, seed, how, dtype):
    mask = data.draw(masks)
    (x,) = normal(mask.shape, seed, 1, dtype)
    rows = [[x[i, t].item() for t in range(mask.shape[1]) if mask[i, t]] for i in range(mask.shape[0])]
    numbers = (
        [value for row in rows for value in row] if how == "token" else [sum(row) / len(row) for row in rows if row]
    )
    expected = sum(numbers) / len(numbers) if numbers else 0.0
    ours = masked_mean(x.masked_fill(~mask, torch.nan), mask, how)
    assert ours.dtype == dtype
    assert ours.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert masked_mean(x, mask, how, denominator=7.0).item() == pytest.approx(sum(numbers) / 7.0, rel=1e-5, abs=1e-5)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=SEEDS)
def test_masked_mean_agrees_with_verl(core_algos, masks, data, seed):
    mask = data.draw(masks)
    mask[0, 0] = True  # verl divides by zero on an empty batch
    (x,) = normal(mask.shape, seed, 1)
    for how, name in (("token", "token-mean"), ("conversation", "seq-mean-token-mean")):
        torch.testing.assert_close(masked_mean(x, mask, how), core_algos.agg_loss(x, mask.double(), name))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=SEEDS, how=HOW, shards=st.integers(1, 4))
def test_shards_add_up_to_the_whole_batch_gradient_included(masks, data, seed, how, shards):
    mask = data.draw(masks)
    (x,) = normal(mask.shape, seed, 1)
    whole, parted = x.clone().requires_grad_(), x.clone().requires_grad_()
    masked_mean(whole.square(), mask, how).backward()
    parts = list(zip(parted.tensor_split(shards), mask.tensor_split(shards), strict=True))
    denominator = sum(local_denominator(part, how) for _, part in parts).clamp_min(1)
    losses = [masked_mean(rows.square(), part, how, denominator) for rows, part in parts]
    sum(losses).backward()
    torch.testing.assert_close(sum(losses), masked_mean(x.square(), mask, how))
    torch.testing.assert_close(parted.grad, whole.grad)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=SEEDS, how=HOW)
def test_token_weights_survive_packing_rows_into_one(masks, data, seed, how):
    mask = data.draw(masks)
    (x,) = normal(mask.shape, seed, 1)
    weights = token_weights(mask, how, x.dtype)
    assert (weights[~mask] == 0).all()
    denominator = local_denominator(mask, how).clamp_min(1)
    packed, kept = (x * weights)[mask][None], torch.ones(1, int(mask.sum()), dtype=torch.bool)
    torch.testing.assert_close(masked_mean(packed, kept, "token", denominator), masked_mean(x, mask, how))


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, clips=CLIPS, dual_clip=st.sampled_from([None, 1.5, 3.0]))
def test_clipped_surrogate_is_its_definition(seed, clips, dual_clip):
    new, old, advantages = normal((3, 9), seed, 3)
    surrogate = clipped_surrogate(new, old, advantages, *clips, dual_clip)
    for i in range(3):
        for t in range(9):
            ratio, a = math.exp(new[i, t] - old[i, t]), advantages[i, t].item()
            held = min(max(ratio, 1 - clips[0]), 1 + clips[1])
            objective = min(ratio * a, held * a)
            if dual_clip is not None and a < 0:
                objective = max(objective, dual_clip * a)
            assert surrogate.loss[i, t].item() == pytest.approx(-objective)
            assert surrogate.ratio[i, t].item() == pytest.approx(ratio)
            assert surrogate.kl[i, t].item() == pytest.approx(ratio - 1 - math.log(ratio))
            assert bool(surrogate.clipped[i, t]) == (not math.isclose(objective, ratio * a))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=SEEDS, clips=CLIPS, dual_clip=st.sampled_from([1.5, 3.0]))
def test_clipped_surrogate_agrees_with_verl(core_algos, masks, data, seed, clips, dual_clip):
    mask = data.draw(masks)
    mask[0, 0] = True
    new, old, advantages = normal(mask.shape, seed, 3)
    new.requires_grad_()
    surrogate = clipped_surrogate(new, old, advantages, *clips, dual_clip)
    loss = masked_mean(surrogate.loss, mask)
    reference, fraction, _, lower = core_algos.compute_policy_loss(
        old, new, advantages, mask.double(), None, *clips, dual_clip, "token-mean"
    )
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(torch.autograd.grad(loss, new), torch.autograd.grad(reference, new))
    statistics = surrogate.statistics(mask)
    torch.testing.assert_close(statistics["clip_fraction"], fraction + lower, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(statistics["ratio_max"], (new - old).exp()[mask].max().detach())


def test_on_the_sampling_policy_the_surrogates_gradient_is_reinforces():
    logprobs, advantages = normal((4, 6), 0, 2)
    logprobs.requires_grad_()
    surrogate = torch.autograd.grad(clipped_surrogate(logprobs, logprobs, advantages, 0.2, 0.2).loss.sum(), logprobs)
    reinforce = torch.autograd.grad(reinforce_loss(logprobs, advantages).sum(), logprobs)
    torch.testing.assert_close(surrogate, reinforce)
    torch.testing.assert_close(reinforce[0], -advantages)


def test_a_hopelessly_stale_token_gives_a_finite_loss_and_no_gradient():
    new = torch.tensor([[0.0, -1e4, 3e38, -0.1]], requires_grad=True)
    old = torch.tensor([[-1e4, 0.0, -3e38, -0.2]])
    surrogate = clipped_surrogate(new, old, torch.full((1, 4), -1.0), 0.2, 0.2)
    kl = kl_estimate(new, old, "k3")
    loss = masked_mean(surrogate.loss + kl, torch.ones(1, 4, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, new)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert gradient[0, :3].tolist() == [0.0, 0.0, 0.0]
    assert gradient[0, 3] != 0
    assert surrogate.ratio.max().item() == pytest.approx(math.exp(LOG_RATIO_BOUND))


def test_numerical_gradients():
    """float64 finite differences, away from the kinks of the clips."""
    old, advantages = normal((3, 5), 1, 2)
    offsets = torch.tensor([-0.7, -0.1, 0.03, 0.15, 1.4], dtype=torch.float64).expand(3, 5)
    inputs = ((old + offsets).requires_grad_(),)
    mask = torch.tensor([[1, 0, 1, 1, 1], [1, 1, 0, 1, 1], [0, 0, 1, 0, 0]], dtype=torch.bool)
    for function in (
        lambda x: clipped_surrogate(x, old, advantages, 0.2, 0.3, 3.0).loss,
        lambda x: reinforce_loss(x, advantages),
        lambda x: kl_estimate(x, old, "k2"),
        lambda x: kl_estimate(x, old, "k3"),
        lambda x: masked_mean(x.square(), mask, "conversation"),
    ):
        assert torch.autograd.gradcheck(function, inputs)


def test_kl_estimators_in_exact_expectation():
    """Over a whole distribution: k1 and k3 average to the KL, k2's gradient to the KL's gradient, k1's to zero."""
    logits, reference_logits = normal((2, 11), 3, 2)
    logits.requires_grad_()
    logprobs, reference = logits.log_softmax(-1), reference_logits.log_softmax(-1)
    p = logprobs.exp()
    kl = (p * (logprobs - reference)).sum(-1)
    (gradient,) = torch.autograd.grad(kl.sum(), logits, retain_graph=True)
    estimates = {kind: kl_estimate(logprobs, reference, kind) for kind in ("k1", "k2", "k3")}
    for kind in ("k1", "k3"):
        torch.testing.assert_close((p * estimates[kind]).sum(-1), kl)
    sampled = {
        kind: torch.autograd.grad((p.detach() * estimate).sum(), logits, retain_graph=True)[0]
        for kind, estimate in estimates.items()
    }
    torch.testing.assert_close(sampled["k2"], gradient)
    torch.testing.assert_close(sampled["k1"], torch.zeros_like(gradient))


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, scale=st.sampled_from([1e-8, 1e-4, 1e-2, 1.0, 8.0]), dtype=DTYPES)
def test_kl_estimates_are_their_definitions(seed, scale, dtype):
    reference, difference = normal((4, 50), seed, 2, dtype)
    logprobs = reference + scale * difference
    d = (logprobs - reference).double()
    close = {"rtol": 1e-5, "atol": 1e-6 * scale}
    for kind, definition in (("k1", d), ("k2", d.square() / 2), ("k3", torch.expm1(-d) + d)):
        ours = kl_estimate(logprobs, reference, kind)
        inside = d.abs() < LOG_RATIO_BOUND
        torch.testing.assert_close(ours.double()[inside], definition[inside], **close)
    assert (kl_estimate(logprobs, reference, "k3") >= 0).all()


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, scale=st.sampled_from([1e-2, 1.0]))
def test_kl_estimates_agree_with_verl(core_algos, seed, scale):
    reference, difference = normal((4, 50), seed, 2)
    logprobs = reference + scale * difference
    for kind in ("k1", "k2", "k3"):
        ours = kl_estimate(logprobs, reference, kind)
        if kind == "k3":  # which verl truncates at 10
            ours = ours.clamp(-10, 10)
        torch.testing.assert_close(ours, core_algos.kl_penalty(logprobs, reference, kind))


@settings(deadline=None, max_examples=50)
@given(data=st.data(), seed=SEEDS, cap=st.sampled_from([0.5, 1.0, 2.0]), level=st.sampled_from(["token", "sequence"]))
def test_truncated_importance_weights_are_their_definition(masks, data, seed, cap, level):
    mask = data.draw(masks)
    behaviour, learner = normal(mask.shape, seed, 2)
    padded = behaviour.masked_fill(~mask, -torch.inf)
    ours = truncated_importance_weights(padded, learner.clone().requires_grad_(), mask, cap, level)
    assert not ours.requires_grad
    differences = learner - behaviour
    for i in range(mask.shape[0]):
        agent = [t for t in range(mask.shape[1]) if mask[i, t]]
        for t in range(mask.shape[1]):
            log_ratio = sum(differences[i, k].item() for k in (agent if level == "sequence" else [t]))
            expected = min(math.exp(min(max(log_ratio, -20), 20)), cap) if mask[i, t] else 0.0
            assert ours[i, t].item() == pytest.approx(expected)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=SEEDS, cap=st.sampled_from([1.0, 2.0]), level=st.sampled_from(["token", "sequence"]))
def test_truncated_importance_weights_agree_with_verl(rollout_correction, masks, data, seed, cap, level):
    mask = data.draw(masks)
    mask[0, 0] = True  # verl's statistics need a token
    behaviour, learner = normal(mask.shape, seed, 2)
    reference, _ = rollout_correction.compute_rollout_correction_weights(learner - behaviour, mask.double(), level, cap)
    torch.testing.assert_close(truncated_importance_weights(behaviour, learner, mask, cap, level), reference)


def test_slips_are_named():
    x, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ConfigurationError, match=r"1\.5 below"):
        clipped_surrogate(x, x, x, 1.5, 0.2)
    with pytest.raises(ConfigurationError, match=r"dual_clip is 0\.5"):
        clipped_surrogate(x, x, x, 0.2, 0.2, 0.5)
    with pytest.raises(ConfigurationError, match="'k4'"):
        kl_estimate(x, x, "k4")
    for function in (masked_mean, lambda *arguments: token_weights(*arguments[1:])):
        with pytest.raises(ConfigurationError, match="'turn'"):
            function(x, mask, "turn")
    with pytest.raises(ConfigurationError, match="'turn'"):
        local_denominator(mask, "turn")
    with pytest.raises(ConfigurationError, match="level of importance weights is 'turn'"):
        truncated_importance_weights(x, x, mask, 2.0, "turn")
    with pytest.raises(ConfigurationError, match="cap of importance weights is 0"):
        truncated_importance_weights(x, x, mask, 0.0, "token")
    with pytest.raises(ValueError, match=r"x has shape \[2, 1\]"):
        masked_mean(x[:, :1], mask)
