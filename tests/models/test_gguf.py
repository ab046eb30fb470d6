"""A GGUF file becomes an ordinary folder: same tensors, same tokenizer, same chat template."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mtrl_ray.dialogue.tokens import ChatFormat
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.models.gguf import convert_gguf, load_gguf_tokenizer

gguf = pytest.importorskip("gguf", reason="writing a GGUF file needs the package gguf")

WIDTH, INNER, HEADS = 32, 64, 2
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
SHAPES = {
    "attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH), "attn_v": (WIDTH, WIDTH), "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER),
    "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,),
}  # fmt: skip


def write_llama(path: Path) -> dict[str, np.ndarray]:
    """A one-layer Llama over bytes and two control tokens. Returns its tensors by their GGUF names."""
    tokens = ["<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "hi"]
    shapes = {"token_embd.weight": (len(tokens), WIDTH), "output_norm.weight": (WIDTH,)}
    shapes |= {f"blk.0.{name}.weight": shape for name, shape in SHAPES.items()}
    random = np.random.default_rng(0)
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(tokens) - 2))
    writer.add_token_merges(["h i"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_converted_model_is_an_ordinary_folder(tmp_path: Path) -> None:
    written = write_llama(tmp_path / "small.gguf")
    convert_gguf(tmp_path / "small.gguf", tmp_path / "folder")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    read = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    np.testing.assert_array_equal(read["model.embed_tokens.weight"], written["token_embd.weight"])
    np.testing.assert_array_equal(read["model.layers.0.mlp.down_proj.weight"], written["blk.0.ffn_down.weight"])
    np.testing.assert_array_equal(read["model.layers.0.self_attn.v_proj.weight"], written["blk.0.attn_v.weight"])
    assert model.config.eos_token_id == 1
    chat = ChatFormat.from_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "folder"))
    assert chat.encode_agent("hi") == [258, 1]


def test_the_tokenizer_alone_can_be_read(tmp_path: Path) -> None:
    write_llama(tmp_path / "small.gguf")
    tokenizer = load_gguf_tokenizer(tmp_path / "small.gguf")
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|im_start|>user\nhi<|im_end|>\n"


@pytest.mark.parametrize("name", ["absent.gguf", "model.safetensors"])
def test_what_is_no_gguf_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigurationError, match=name):
        convert_gguf(tmp_path / name, tmp_path / "folder")
