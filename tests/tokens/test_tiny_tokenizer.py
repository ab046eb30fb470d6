"""The tiny model's tokenizer: lossless, short, reproducible, an ordinary folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.models.tiny_tokenizer import train_tokenizer

TEXTS = [f"I offer ${price}k, that's my price. It's {price}% off!" for price in range(10, 40)] * 2


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocabulary=512)


@given(text=st.text())
def test_any_text_survives(trained: PreTrainedTokenizerFast, text: str) -> None:
    ids = trained(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert trained.decode(ids) == text


def test_frequent_words_and_amounts_are_one_token_with_their_space(trained: PreTrainedTokenizerFast) -> None:
    assert trained.tokenize("I offer $38k, that's my price.") == [
        "I",
        "Ġoffer",
        "Ġ$38k",
        ",",
        "Ġthat's",
        "Ġmy",
        "Ġprice",
        ".",
    ]


def test_special_tokens_have_the_first_ids(trained: PreTrainedTokenizerFast) -> None:
    names = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|agent|>"]
    assert trained.convert_tokens_to_ids(names) == [0, 1, 2, 3, 4]
    assert sorted(trained.all_special_ids) == [0, 1, 2, 3, 4]
    assert (trained.pad_token_id, trained.eos_token_id, trained.bos_token_id) == (0, 1, None)


def test_the_vocabulary_is_bounded(trained: PreTrainedTokenizerFast) -> None:
    assert 5 + 256 < len(trained) <= 512
    assert len(train_tokenizer(TEXTS, vocabulary=300)) == 300
    assert len(train_tokenizer([], vocabulary=1024)) == 5 + 256
    with pytest.raises(ConfigurationError, match=r"vocabulary of 200 ids is too small: .* need 261"):
        train_tokenizer(TEXTS, vocabulary=200)


def test_another_process_learns_the_same(trained: PreTrainedTokenizerFast) -> None:
    program = (
        "import json, sys\nfrom mtrl_ray.models.tiny_tokenizer import train_tokenizer\n"
        "print(train_tokenizer(json.load(sys.stdin), vocabulary=512).backend_tokenizer.to_str())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(TEXTS), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == json.loads(trained.backend_tokenizer.to_str())


def test_a_saved_folder_loads_as_any_other(trained: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "system", "content": "Sell."}, {"role": "user", "content": "Hi, it's <b>"}]
    messages += [{"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "$38k"}]
    assert loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|system|>Sell.<|end|><|user|>Hi, it's <b><|end|><|agent|>Yes?<|end|><|user|>$38k<|end|><|agent|>"
    )
    assert loaded.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()
    assert (loaded.eos_token_id, loaded.pad_token_id) == (1, 0)


def test_an_unknown_role_is_named(trained: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="unknown role tool"):
        trained.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)
