"""A tokenizer for plain text that never produces control tokens.

A Hugging Face fast tokenizer finds its added tokens (`<|im_start|>`, `</s>`, `<think>`) in any string. `plain_tokenizer` is a
copy without them, so a role marker in a user's message becomes ordinary tokens. It lacks the special tokens, and the added
tokens that are not marked special but look like markup. Added words and runs of white space stay, because they are ordinary
vocabulary.

The copy is made once and shares no state with the original. (The `split_special_tokens` option of the original leaves
non-special added tokens in place and is not thread-safe.) A text always follows a control token or text that is encoded with
it, so the copy adds no leading space.
"""

import json
import re
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from mtrl_ray.errors import ConfigurationError, DataError

MARKUP = re.compile(r"[^\w\s]")


def control_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    """Ids that text must never produce → their names: special tokens, and added tokens that are markup."""
    added = tokenizer.added_tokens_decoder.items()
    found = {index: token.content for index, token in added if token.special or MARKUP.search(token.content)}
    return found | {index: str(tokenizer.convert_ids_to_tokens(index)) for index in tokenizer.all_special_ids}


def plain_tokenizer(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the tokenizer that never produces a control token.

    Raises ConfigurationError if the vocabulary produces one from plain text and this cannot be prevented.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    unknown = state["model"].get("unk_token")  # models without byte tokens use it for unknown characters
    forbidden = control_tokens(tokenizer)
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] not in forbidden]
    forbidden = {index: name for index, name in forbidden.items() if name != unknown}
    state.update(truncation=None, padding=None, post_processor=None)
    _no_leading_space(state["pre_tokenizer"])
    plain = Tokenizer.from_str(json.dumps(state))
    if _spelt(plain, forbidden):
        _unlearn(state["model"], _spelt(plain, forbidden))
        plain = Tokenizer.from_str(json.dumps(state))
    if spelt := _spelt(plain, forbidden):
        raise ConfigurationError(
            f"the vocabulary of the tokenizer {tokenizer.name_or_path!r} ({state['model']['type']}) spells the control "
            f"tokens {sorted(forbidden[index] for index in spelt)} from plain text, so a user could write them; "
            "byte-level BPE and Unigram tokenizers work"
        )
    return plain


def encode_plain(plain: Tokenizer, text: str) -> list[int]:
    """Ids of a text. Raises DataError if it is not valid Unicode (a lone surrogate)."""
    try:
        ids: list[int] = plain.encode(text, add_special_tokens=False).ids
    except TypeError as error:
        raise DataError(f"a turn's text has to be a string of valid Unicode, not {text[:80]!r}") from error
    return ids


def _no_leading_space(pre_tokenizer: dict[str, Any] | None) -> None:
    """Remove the space that Metaspace adds before the first word of a conversation; a turn's text is not the first."""
    if pre_tokenizer is None:
        return
    if pre_tokenizer.get("prepend_scheme") == "first":
        pre_tokenizer["prepend_scheme"] = "never"
    for part in pre_tokenizer.get("pretokenizers", []):
        _no_leading_space(part)


def _spelt(plain: Tokenizer, forbidden: dict[int, str]) -> set[int]:
    """Control ids that the encoding of their own names contains."""
    encodings = plain.encode_batch(list(forbidden.values()), add_special_tokens=False)
    return {index for encoding in encodings for index in encoding.ids if index in forbidden}


def _unlearn(model: dict[str, Any], ids: set[int]) -> None:
    """Remove tokens from a model's vocabulary; other ids stay unchanged."""
    if model["type"] == "BPE":
        names = {token for token, index in model["vocab"].items() if index in ids}
        model["vocab"] = {token: index for token, index in model["vocab"].items() if token not in names}
        merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        model["merges"] = [pair for pair in merges if not names & {*pair, "".join(pair)}]
    elif model["type"] == "Unigram":
        for index in ids:
            model["vocab"][index][0] = f"\uffff{index}\uffff"
