"""The tokenizer of the tiny model: byte-level BPE trained on scripted conversations, with a minimal chat template.

- Bytes are the alphabet, so any text is representable and `decode(encode(text)) == text`.
- Text is split into words with their leading space, amounts with their currency sign and suffix (`" $38k"`), runs of
  punctuation, and white space; frequent pieces become one token. Short sequences make a model of this size fast.
- A turn is the token of its role, the text, and `<|end|>`: no newline, no beginning-of-sequence token, no default system
  prompt. `<|end|>` is both the end-of-turn and the end-of-sequence token.
- The same texts give the same tokenizer. It is a standard Hugging Face tokenizer for `AutoTokenizer` and vLLM.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mtrl_ray.errors import ConfigurationError

PAD, END, SYSTEM, USER, AGENT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|agent|>"
SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, AGENT)
"""Ids 0 to 4, in this order."""

SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256
"""The special tokens and one token per byte."""

WORDS = (
    r" ?\p{L}+(?:'\p{L}+)*"  # words, contractions whole
    r"| ?[$€£]?\p{N}+(?:[.,]\p{N}+)*(?:[kK](?!\p{L})|%)?"  # amounts
    r"| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{%- set names = {'system': '" + SYSTEM + "', 'user': '" + USER + "', 'assistant': '" + AGENT + "'} -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in names -%}{{ raise_exception('unknown role ' + message['role']) }}{%- endif -%}"
    "{{ names[message['role']] + message['content'] + '" + END + "' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '" + AGENT + "' }}{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int = 1024) -> PreTrainedTokenizerFast:
    """Train a tokenizer with at most `vocabulary` ids (fewer if `texts` has too few repeated words).

    Raises ConfigurationError if `vocabulary` is too small for the bytes and the special tokens.
    """
    if vocabulary < SMALLEST_VOCABULARY:
        raise ConfigurationError(
            f"a byte-level vocabulary of {vocabulary} ids is too small: "
            f"the bytes and the special tokens need {SMALLEST_VOCABULARY}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[SYSTEM, USER, AGENT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
