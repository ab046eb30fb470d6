"""The geometric mixture, on both engines: exact log-probabilities, in mixed company, before and after updates."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.rollout.engine import SampleRequest
from mtrl_ray.rollout.huggingface_engine import HuggingFaceEngine
from tests.rollout.conftest import logprobs, shaken, weights_of
from tests.rollout.test_engines import drain, requests


@pytest.fixture(scope="module", params=["vllm", "huggingface"])
def mixing(request: pytest.FixtureRequest, blank_sales: Path, chat, sales_settings) -> Iterator[object]:
    """An engine that holds the reference beside the policy."""
    rollout = sales_settings.rollout.model_copy(update={"reference": True})
    if request.param == "huggingface":
        yield HuggingFaceEngine(str(blank_sales), chat.stop_ids, rollout, sales_settings.model)
        return
    from mtrl_ray.rollout.vllm_engine import VllmEngine

    engine = VllmEngine(str(blank_sales), chat.stop_ids, rollout, sales_settings.model)
    yield engine
    engine.close()


def mixed_logprobs(
    policy: LlamaForCausalLM, reference: LlamaForCausalLM, request: SampleRequest, tokens: list[int]
) -> torch.Tensor:
    """By one forward pass of each model over all ids: log-probabilities of the tokens under π^(1-τ) μ^τ."""
    ids, start = torch.tensor([request.prompt + tokens]), len(request.prompt) - 1
    with torch.no_grad():
        own, other = (
            (model(ids).logits[0].double() / request.temperature).log_softmax(-1)[start:-1]
            for model in (policy, reference)
        )
    mixture = ((1 - request.mixture) * own + request.mixture * other).log_softmax(-1)
    return mixture.gather(1, torch.tensor(tokens)[:, None])[:, 0].float()


def ask(engine, chat, shares: list[float], temperature: float = 1.0) -> list[tuple[SampleRequest, object]]:
    """Requests of these shares, in one batch: (request, generation)."""
    plain = requests(chat, len(shares), temperature=temperature)
    asked = [
        SampleRequest(one.id, one.prompt, one.seed, one.max_tokens, temperature, share)
        for one, share in zip(plain, shares, strict=True)
    ]
    for one in asked:
        engine.submit(one)
    finished = drain(engine)
    return [(one, finished[one.id]) for one in asked]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_the_mixtures(mixing, chat, blank_sales, reference, temperature):
    """The policy is updated twice; the reference stays what it was. Requests without a share are the policy's own."""
    frozen = LlamaForCausalLM.from_pretrained(blank_sales).eval()
    apart = 0.0
    for version in (1, 2):
        mixing.load_weights(weights_of(shaken(reference, version)), version)
        for request, generation in ask(mixing, chat, [0.0, 0.3, 0.0375, 1.0, 0.3, 0.0] * 3, temperature):
            expected = mixed_logprobs(reference, frozen, request, generation.tokens)
            torch.testing.assert_close(torch.tensor(generation.logprobs), expected, atol=1e-5, rtol=1e-5)
            own = logprobs(reference, request.prompt, generation.tokens, temperature)
            apart = max(apart, float((own - expected).abs().max()))
            assert set(generation.versions) == {version}
    assert apart > 0.05, "a policy that differs from the mixture"


def test_company_changes_nothing(mixing, chat, reference):
    """Requests come and go in other rows of the batch, with other shares."""
    mixing.load_weights(weights_of(shaken(reference, 3)), 3)
    shares = [0.5, 0.0, 0.2] * 8
    together = ask(mixing, chat, shares)
    for request, generation in together[::7]:
        mixing.submit(request)
        alone = drain(mixing)[request.id]
        assert alone.tokens == generation.tokens
        torch.testing.assert_close(
            torch.tensor(alone.logprobs), torch.tensor(generation.logprobs), atol=1e-5, rtol=1e-5
        )


def test_without_a_share_the_samples_are_those_of_an_engine_without_reference(mixing, engine, chat, reference):
    if type(mixing) is not type(engine):
        pytest.skip("one engine's samples are not another's")
    moved = shaken(reference, 4)
    for one in (mixing, engine):
        one.load_weights(weights_of(moved), 4)
    found, expected = (ask(one, chat, [0.0] * 6) for one in (mixing, engine))
    assert [generation.tokens for _, generation in found] == [generation.tokens for _, generation in expected]


def test_an_engine_without_reference_refuses(engine, chat):
    with pytest.raises(ConfigurationError, match=r"rollout.reference: true"):
        engine.submit(SampleRequest("r", requests(chat, 1)[0].prompt, 0, 4, mixture=0.1))
