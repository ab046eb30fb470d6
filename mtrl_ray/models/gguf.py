"""Conversion of GGUF files to Hugging Face folders with transformers' loader (needs the `gguf` package).

The weights are dequantised; the folder has full tensors, and the tokenizer and chat template of the file.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerFast

from mtrl_ray.errors import ConfigurationError


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer, with chat template, of a GGUF file. Raises ConfigurationError if there is no such file."""
    _check(path)
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return tokenizer


def convert_gguf(path: Path, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a GGUF file's model and tokenizer to `folder`, for transformers and vLLM.

    Raises ConfigurationError if there is no such file.
    """
    tokenizer = load_gguf_tokenizer(path)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check(path: Path) -> None:
    if path.suffix != ".gguf" or not path.is_file():
        raise ConfigurationError(f"{path} is not a GGUF file; give an existing file that ends in .gguf")
