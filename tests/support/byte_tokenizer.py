"""A tokenizer whose ids can be read: byte b has id b, control tokens count up from 256."""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode


def byte_tokenizer(
    template: str | None,
    special: Sequence[str],
    added: Sequence[str] = (),
    merges: Sequence[tuple[str, str]] = (),
    eos: str | None = None,
    bos: str | None = None,
) -> PreTrainedTokenizerFast:
    """Ids: 0-255 bytes; then `special` tokens, then `added` ones not marked special, then the results of `merges`.

    `merges` are pairs in the byte-level alphabet (a space is "Ġ", a newline "Ċ").
    """
    vocabulary = {letter: byte for byte, letter in bytes_to_unicode().items()}
    for token in special:
        vocabulary[token] = len(vocabulary)
    for token in added:
        vocabulary[token] = len(vocabulary)
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        bos_token=bos,
        extra_special_tokens=list(special),
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
