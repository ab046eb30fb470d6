"""GGUF files as ordinary Hugging Face folders, by transformers' own loader (needs the `gguf` package).

The weights are dequantised: the folder holds full tensors, with the tokenizer and chat template that the file carries.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerFast

from mtrl_ray.errors import ConfigurationError


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer and chat template inside a GGUF file. Raises ConfigurationError where there is no such file."""
    _check(path)
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return tokenizer


def convert_gguf(path: Path, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a GGUF file's model and tokenizer to `folder`, for transformers and vLLM.

    Raises ConfigurationError where there is no such file.
    """
    tokenizer = load_gguf_tokenizer(path)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check(path: Path) -> None:
    if path.suffix != ".gguf" or not path.is_file():
        raise ConfigurationError(f"{path} is no GGUF file; name an existing file that ends in .gguf")
