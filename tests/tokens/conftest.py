"""The three tokenizers whose turn boundaries are written out in full, and their chat formats."""

import pytest
from transformers import PreTrainedTokenizerFast

from mtrl_ray.dialogue.tokens import ChatFormat
from mtrl_ray.models.gguf import load_gguf_tokenizer
from mtrl_ray.models.tiny_tokenizer import train_tokenizer
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.smollm2 import REQUIREMENT, smollm2_gguf
from tests.support.templates import QWEN2_5, QWEN_ADDED, QWEN_SPECIAL

CORPUS = ["Sell bikes. Hi, I want a bike. It costs $38k. Too much!"] * 2


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The project's own, in which every word of `CORPUS` is one token."""
    return train_tokenizer(CORPUS, vocabulary=400)


@pytest.fixture(scope="session")
def chatml_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, ChatML as Qwen2.5 writes it, and one merge: two newlines are id 263."""
    return byte_tokenizer(QWEN2_5, QWEN_SPECIAL, QWEN_ADDED, merges=[("Ċ", "Ċ")], eos="<|im_end|>")


@pytest.fixture(scope="session")
def smollm2_tokenizer() -> PreTrainedTokenizerFast:
    """SmolLM2's, read from the published model file."""
    path = smollm2_gguf()
    if path is None:
        pytest.skip(f"the package {REQUIREMENT} is not installed")
    pytest.importorskip("gguf", reason="reading a GGUF file needs the package gguf")
    return load_gguf_tokenizer(path)


@pytest.fixture(scope="session")
def tiny(tiny_tokenizer: PreTrainedTokenizerFast) -> ChatFormat:
    return ChatFormat.from_tokenizer(tiny_tokenizer)


@pytest.fixture(scope="session")
def chatml(chatml_tokenizer: PreTrainedTokenizerFast) -> ChatFormat:
    return ChatFormat.from_tokenizer(chatml_tokenizer)


@pytest.fixture(scope="session")
def smollm2(smollm2_tokenizer: PreTrainedTokenizerFast) -> ChatFormat:
    return ChatFormat.from_tokenizer(smollm2_tokenizer)


@pytest.fixture(scope="session")
def chatml_bytes() -> ChatFormat:
    """ChatML in which every ordinary token is one byte."""
    return ChatFormat.from_tokenizer(byte_tokenizer(QWEN2_5, QWEN_SPECIAL, QWEN_ADDED, eos="<|im_end|>"))


@pytest.fixture(scope="session", params=["tiny", "chatml", "smollm2"])
def chat(request: pytest.FixtureRequest) -> ChatFormat:
    """Each of the three in turn."""
    fixture: ChatFormat = request.getfixturevalue(request.param)
    return fixture
