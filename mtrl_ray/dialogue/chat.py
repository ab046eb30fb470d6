"""The chat format of a model folder or a hub name."""

from mtrl_ray.dialogue.tokens import ChatFormat
from mtrl_ray.errors import CheckpointError


def chat_format(path: str) -> ChatFormat:
    """The chat format of a tokenizer; its stop ids include the generation config's end tokens.

    Raises CheckpointError if there is no tokenizer, ConfigurationError if its chat template cannot be used.
    """
    from transformers import AutoTokenizer, GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:
        eos = None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # transformers and tokenizers raise many types for a damaged file
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"no tokenizer could be loaded from {path!r} ({type(error).__name__}: {reason})"
        ) from None
    listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return ChatFormat.from_tokenizer(tokenizer, listed)
