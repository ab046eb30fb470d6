"""Both engines behind one name, on the same random weights, which every test finds as it left the folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from mtrl_ray.dialogue.chat import chat_format
from mtrl_ray.rollout.huggingface_engine import HuggingFaceEngine


@pytest.fixture(scope="session")
def chat(blank_sales: Path):
    """The chat format of the models under test."""
    return chat_format(str(blank_sales))


@pytest.fixture
def reference(blank_sales: Path) -> LlamaForCausalLM:
    """The learner's side of every comparison: a fresh copy of the model."""
    return LlamaForCausalLM.from_pretrained(blank_sales).eval()


@pytest.fixture(params=["vllm", "huggingface"])
def engine(request: pytest.FixtureRequest, blank_sales: Path, chat, sales_settings, reference) -> Iterator[object]:
    """An engine under the weights of `reference`, version 0."""
    if request.param == "vllm":
        engine = request.getfixturevalue("vllm_engine")
        engine.load_weights(weights_of(reference), 0)
        yield engine
        return
    yield HuggingFaceEngine(str(blank_sales), chat.stop_ids, sales_settings.rollout, sales_settings.model)


def weights_of(model: LlamaForCausalLM):
    """(name, tensor) pairs as a publication has them: tied weights once."""
    return iter([(name, tensor) for name, tensor in model.state_dict().items() if name != "lm_head.weight"])


def shaken(model: LlamaForCausalLM, seed: int) -> LlamaForCausalLM:
    """The model with every weight moved a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def logprobs(model: LlamaForCausalLM, prompt: list[int], response: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of the response's tokens by one forward pass over all ids, [tokens]."""
    ids = torch.tensor([prompt + response])
    with torch.no_grad():
        predicted = (model(ids).logits[0].float() / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
    return predicted.gather(1, torch.tensor(response)[:, None])[:, 0]
