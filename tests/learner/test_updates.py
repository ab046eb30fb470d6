"""The loss of a policy step against a loop over tokens written from its definition."""

import pytest
import torch

from mtrl_ray.learner.methods.conversations import ConversationImprovement
from mtrl_ray.learner.methods.updates import Measured, policy_loss
from mtrl_ray.learner.sections import KL

TOKENS, CAP = 7, 2.0


@pytest.mark.parametrize("objective", ["clipped", "plain"])
def test_importance_weights_count_in_the_surrogate_and_in_every_kl(objective: str):
    """With weights π/π^τ, samples of a mixture give the gradients that samples of π would give."""
    draw = torch.Generator().manual_seed(0)
    now, old, reference, sampled, found = (torch.randn(TOKENS, generator=draw) for _ in range(5))
    now, shares = 0.05 * now + old, torch.full((TOKENS,), 1 / TOKENS)  # a small step: nothing is clipped
    weights = (old - sampled).exp().clamp(max=CAP)
    spec = ConversationImprovement(
        objective=objective, previous_kl=0.7, entropy_bonus=0.0, kl=KL(coefficient=0.3, kind="k2", place="loss")
    )
    logprobs = now.clone().requires_grad_()
    loss = policy_loss(Measured(old, reference, weights), found, shares, spec)
    total, statistics = loss({"logprobs": logprobs, "entropies": torch.zeros(TOKENS)}, torch.arange(TOKENS))
    total.backward()
    expected, divergence = [], 0.0
    for token in range(TOKENS):
        ratio = float((now[token] - old[token]).exp()) if objective == "clipped" else 1.0
        slope = -float(found[token]) * ratio
        slope += 0.3 * float(now[token] - reference[token]) + 0.7 * float(now[token] - old[token])
        expected.append(float(weights[token]) * slope / TOKENS)
        apart = float(reference[token] - now[token])
        divergence += float(weights[token]) * (torch.tensor(apart).exp().item() - 1 - apart) / TOKENS
    assert logprobs.grad.tolist() == pytest.approx(expected, abs=1e-5)
    assert statistics["kl_reference"].item() == pytest.approx(divergence, rel=1e-4)
    assert weights.min() < 0.9 < 1.1 < weights.max()
