"""Both engines keep the promises of `rollout.engine`: exact log-probabilities, seeds, versions, limits."""

from typing import Any

import pytest
import torch

from mtrl_ray.dialogue.conversation import Finish
from mtrl_ray.errors import EngineError
from mtrl_ray.rollout.engine import Generation, SampleRequest
from tests.rollout.conftest import logprobs, shaken, weights_of


def drain(engine) -> dict[str, Generation]:
    """Step until nothing is in flight."""
    finished = {}
    while engine.in_flight:
        finished |= {generation.id: generation for generation in engine.step()}
    return finished


def requests(chat, count: int, name: str = "r", max_tokens: int = 12, temperature: float = 1.0) -> list[SampleRequest]:
    """Requests with prompts of different lengths."""
    words = ["I need a bike.", "Do you have a camera for sports?", "Hello! My budget is $900, what can you offer me?"]
    opened = [chat.open("Suggest replies that sell.", words[n % 3] * (1 + n % 4)) for n in range(count)]
    prompts = [system + user for system, user in opened]
    return [SampleRequest(f"{name}{n}", prompt, 1000 + n, max_tokens, temperature) for n, prompt in enumerate(prompts)]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_the_learners_before_and_after_an_update(engine, chat, reference, temperature):
    for version in (1, 2):
        asked = requests(chat, 16, temperature=temperature)
        for request in asked:
            engine.submit(request)
        finished = drain(engine)
        assert set(finished) == {request.id for request in asked}
        for request in asked:
            generation = finished[request.id]
            expected = logprobs(reference, request.prompt, generation.tokens, temperature)
            torch.testing.assert_close(torch.tensor(generation.logprobs), expected, atol=1e-5, rtol=1e-5)
        engine.load_weights(weights_of(shaken(reference, version)), version)
        assert engine.version == version


def test_a_seed_gives_the_same_response_in_any_company(engine, chat):
    asked = requests(chat, 24)
    for request in asked:
        engine.submit(request)
    together = drain(engine)
    for request in asked[::5]:
        engine.submit(request)
        assert drain(engine)[request.id].tokens == together[request.id].tokens


def test_different_seeds_give_different_responses(engine, chat):
    prompt = requests(chat, 1)[0].prompt
    for seed in range(8):
        engine.submit(SampleRequest(str(seed), prompt, seed, 12))
    assert len({tuple(generation.tokens) for generation in drain(engine).values()}) == 8


def test_responses_end_at_their_limit_or_with_the_stop_token(engine, chat, reference):
    with torch.no_grad():  # make the end-of-turn token likely
        reference.model.embed_tokens.weight[chat.end_of_turn] *= 30.0
    engine.load_weights(weights_of(reference), 1)
    for request in requests(chat, 48, max_tokens=6):
        engine.submit(request)
    finishes = set()
    for generation in drain(engine).values():
        finishes.add(generation.finish)
        assert chat.end_of_turn not in generation.tokens[:-1]
        if generation.finish == Finish.STOP:
            assert generation.tokens[-1] in chat.stop_ids
        else:
            assert len(generation.tokens) == 6 and generation.tokens[-1] not in chat.stop_ids
        assert len(generation.logprobs) == len(generation.versions) == len(generation.tokens)
    assert finishes == {Finish.STOP, Finish.LENGTH}


def test_every_token_knows_the_version_it_was_sampled_under(engine, chat, reference):
    first, second = requests(chat, 2, "early"), requests(chat, 2, "late")
    engine.load_weights(weights_of(reference), 3)
    for request in first:
        engine.submit(request)
    early = {generation.id: generation for _ in range(4) for generation in engine.step()}
    engine.load_weights(weights_of(shaken(reference, 5)), 4)
    for request in second:
        engine.submit(request)
    finished = early | drain(engine)
    for request in first:
        versions = finished[request.id].versions
        assert versions[0] == 3 and versions == sorted(versions)
    for request in second:
        assert set(finished[request.id].versions) == {4}


def test_what_is_sampled_after_an_update_in_flight_is_the_new_models(vllm_engine, chat, reference):
    vllm_engine.load_weights(weights_of(reference), 0)
    request = SampleRequest("inflight", requests(chat, 1)[0].prompt, 7, 16)
    vllm_engine.submit(request)
    for _ in range(5):
        vllm_engine.step()
    vllm_engine.load_weights(weights_of(shaken(reference, 9)), 1)
    generation = drain(vllm_engine)["inflight"]
    new = [place for place, version in enumerate(generation.versions) if version == 1]
    assert 0 < len(new) < len(generation.tokens)
    expected = logprobs(reference, request.prompt, generation.tokens)[new]
    torch.testing.assert_close(torch.tensor(generation.logprobs)[new], expected, atol=1e-5, rtol=1e-5)


def test_an_aborted_request_is_forgotten(engine, chat):
    for request in requests(chat, 4):
        engine.submit(request)
    engine.abort(["r0", "r2", "unknown"])
    assert set(drain(engine)) == {"r1", "r3"}


def test_a_response_that_vllm_gives_up_is_an_error_and_no_short_response(vllm_engine, chat, monkeypatch):
    inner = vllm_engine._engine.step

    def torn() -> list[Any]:
        outputs = inner()
        for output in outputs:
            output.outputs[0].finish_reason = "error"
        return outputs

    monkeypatch.setattr(vllm_engine._engine, "step", torn)
    vllm_engine.submit(SampleRequest("torn", requests(chat, 1)[0].prompt, 7, 4))
    with pytest.raises(EngineError, match="vLLM gave request 'torn' up: its finish is 'error'"):
        drain(vllm_engine)


def test_weights_of_another_model_are_refused(engine, reference):
    wrong = [("model.embed_tokens.weight", torch.zeros(3, 3))]
    with pytest.raises(EngineError, match="version 9"):
        engine.load_weights(iter(wrong), 9)
