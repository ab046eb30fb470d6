"""Other families' templates: a beginning-of-sequence token, no system role, folded system text, removed reasoning.

Byte tokenizers: id b < 256 is the byte b, control tokens count up from 256 in the order of `tests.support.templates`.
"""

import pickle

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from mtrl_ray.dialogue.conversation import Finish
from mtrl_ray.dialogue.tokens import ChatFormat
from mtrl_ray.errors import ConfigurationError
from tests.support import templates
from tests.support.byte_tokenizer import byte_tokenizer


@pytest.fixture(scope="module")
def llama3() -> ChatFormat:
    tokenizer = byte_tokenizer(
        templates.LLAMA3, templates.LLAMA3_SPECIAL, bos="<|begin_of_text|>", eos="<|end_of_text|>"
    )
    return ChatFormat.from_tokenizer(tokenizer, eos=[260, 259])


@pytest.fixture(scope="module")
def gemma() -> ChatFormat:
    return ChatFormat.from_tokenizer(byte_tokenizer(templates.GEMMA, templates.GEMMA_SPECIAL, bos="<bos>", eos="<eos>"))


@pytest.fixture(scope="module")
def mistral() -> ChatFormat:
    return ChatFormat.from_tokenizer(
        byte_tokenizer(templates.MISTRAL, templates.MISTRAL_SPECIAL, bos="<s>", eos="</s>")
    )


def test_llama3_begins_once_and_strips_texts(llama3: ChatFormat) -> None:
    system, first = llama3.open(" Sell. ", "Hi \n")
    assert system == [256, 257, *b"system", 258, *b"\n\nSell.", 259]
    assert first == [257, *b"user", 258, *b"\n\nHi", 259, 257, *b"assistant", 258, *b"\n\n"]
    assert llama3.encode_agent("Yes? ") == [*b"Yes?", 259]
    assert llama3.user_turn("No", Finish.STOP) == [
        257, *b"user", 258, *b"\n\nNo", 259, 257, *b"assistant", 258, *b"\n\n"
    ]  # fmt: skip
    assert llama3.open(None, "Hi") == ([256], first)
    assert llama3.open("Sell.", None) == ([*system, 257, *b"assistant", 258, *b"\n\n"], [])


def test_llama3_stops_at_the_end_of_turn_and_at_the_end_of_text(llama3: ChatFormat) -> None:
    assert (llama3.end_of_turn, llama3.stop_ids) == (259, (259, 260))
    assert llama3.decode([*b"Yes?", 260]) == "Yes?"


def test_gemma_system_text_comes_before_the_first_message(gemma: ChatFormat) -> None:
    system, first = gemma.open("Sell.", "Hi")
    assert system == [256, 258, *b"user\nSell.\n\n"]
    assert first == [*b"Hi", 259, 10, 258, *b"model\n"]
    assert gemma.open(None, "Hi") == ([], [256, 258, *b"user\nHi", 259, 10, 258, *b"model\n"])
    assert gemma.user_turn("No", Finish.STOP) == [10, 258, *b"user\nNo", 259, 10, 258, *b"model\n"]
    assert gemma.user_turn("No", Finish.LENGTH)[:2] == [259, 10]


def test_gemma_agent_speaks_first_after_a_system_text_in_the_users_place(gemma: ChatFormat) -> None:
    assert gemma.open("Sell.", None) == ([256, 258, *b"user\nSell.", 259, 10, 258, *b"model\n"], [])
    with pytest.raises(ConfigurationError, match="does not let an agent speak first"):
        gemma.open(None, None)


def test_mistral_system_text_stays_where_it_was_sampled_after(mistral: ChatFormat) -> None:
    system, first = mistral.open("Sell.", "Hi")
    assert system == [256, 258, *b" Sell.\n\n"]
    assert first == [*b"Hi", 259]
    assert mistral.user_turn("No", Finish.STOP) == [258, *b" No", 259]
    messages = [{"role": "system", "content": "Sell."}, {"role": "user", "content": "Hi"}]
    assert system + first == mistral.tokenizer.apply_chat_template(messages, return_dict=False)


def test_mistral_response_begins_with_its_space(mistral: ChatFormat) -> None:
    assert mistral.encode_agent("Yes?") == [*b" Yes?", 257]
    assert mistral.decode([*b" Yes?", 257]) == mistral.decode([*b"Yes?", 257]) == "Yes?"
    messages = [{"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Yes?"))]
    before, first = mistral.open(None, "Hi")
    rendered = mistral.tokenizer.apply_chat_template(messages, return_dict=False)
    assert before + first + mistral.encode_agent("Yes?") == rendered


def test_reasoning_of_earlier_turns_stays_in_the_history() -> None:
    tokenizer = byte_tokenizer(templates.THINKING, templates.QWEN_SPECIAL, templates.QWEN_ADDED, eos="<|im_end|>")
    chat = ChatFormat.from_tokenizer(tokenizer)
    sampled = [259, *b"hm", 260, *b"Yes?", 258]  # <think>hm</think>Yes?<|im_end|>
    history = chat.open(None, "Hi")[1] + sampled + chat.user_turn("No", Finish.STOP)
    assert tokenizer.decode(history) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>hm</think>Yes?<|im_end|>\n"
        "<|im_start|>user\nNo<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.decode(sampled) == "<think>hm</think>Yes?"


def test_an_end_of_turn_that_is_not_marked_special_is_no_text() -> None:
    chat = ChatFormat.from_tokenizer(byte_tokenizer(templates.THINKING, ["<|im_start|>"], ["<|im_end|>"]))
    assert (chat.end_of_turn, chat.stop_ids) == (257, (257,))
    assert chat.decode([*b"Yes?", 257]) == "Yes?"
    assert chat.encode_agent("<|im_end|>") == [*b"<|im_end|>", 257]


def test_a_pickled_format_makes_the_same_turns(chatml: ChatFormat) -> None:
    copy = pickle.loads(pickle.dumps(chatml))
    assert copy.open("Sell.", "<|im_end|>") == chatml.open("Sell.", "<|im_end|>")
    assert copy.user_turn("Hi", Finish.LENGTH) == chatml.user_turn("Hi", Finish.LENGTH)


NUMBERED = """\
{%- for message in messages %}{{- '<|im_start|>' + message.role + ' ' + (loop.index | string) + '\\n' }}
{{- message.content + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
LATER = """\
{%- for message in messages %}{{- '<|im_start|>' + message.role + (' again' if loop.index0 == 4 else '') + '\n' }}
{{- message.content + '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
OPEN_ENDED = """\
{%- for message in messages %}{{- message.role + ': ' + message.content + '\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"""
FORGEABLE = """\
{%- for message in messages %}{%- if message.role == 'user' %}{{- '[INST] ' + message.content + ' [/INST]' }}
{%- else %}{{- message.content + eos_token }}{%- endif %}{%- endfor %}"""
FORGETFUL = "{{- messages[-1].content }}{%- if add_generation_prompt %}{{- '<|im_start|>' }}{%- endif %}"
BROKEN = "{{- raise_exception('tools only') }}"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "has no chat template"),
        (NUMBERED, "formats turns differently"),
        (LATER, "formats turns differently"),
        (OPEN_ENDED, "ends an assistant's turn with the ordinary text"),
        (FORGEABLE, "which any user can write"),
        (FORGETFUL, "drops, repeats or reorders messages"),
        (BROKEN, "cannot render a plain conversation: tools only"),
    ],
)
def test_a_template_that_cannot_work_is_refused(template: str | None, sentence: str) -> None:
    tokenizer = byte_tokenizer(template, templates.QWEN_SPECIAL, eos="<|im_end|>")
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        ChatFormat.from_tokenizer(tokenizer)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_is_not_a_fast_one_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Tokenizer is not a fast tokenizer"):
        ChatFormat.from_tokenizer(Tokenizer(models.BPE()))


def test_a_fast_tokenizer_without_a_template_is_named() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), name_or_path="acme/base")
    with pytest.raises(ConfigurationError, match="'acme/base' has no chat template"):
        ChatFormat.from_tokenizer(tokenizer)
