"""Turn boundaries of three templates, token by token, and the same conversations through `apply_chat_template`.

In the byte tokenizer of ChatML, id b < 256 is the byte b; 256 <|endoftext|>, 257 <|im_start|>, 258 <|im_end|>,
263 two newlines. In the tiny one 1 <|end|>, 2 <|system|>, 3 <|user|>, 4 <|agent|>; in SmolLM2's 1 <|im_start|>,
2 <|im_end|>, 198 a newline.
"""

import pytest

from mtrl_ray.dialogue.conversation import Finish
from mtrl_ray.dialogue.tokens import ChatFormat

SYSTEM, FIRST, ANSWER, SECOND = "Sell bikes.", "Hi, I want a bike.", "It costs $38k.", "Too much!"

# --- the tiny model's -------------------------------------------------------------------------------------------------

TINY_SYSTEM = [2, 287, 286, 18, 1]
TINY_FIRST = [3, 268, 16, 263, 293, 278, 265, 18, 1, 4]
TINY_ANSWER = [45, 88, 291, 289, 18, 1]
TINY_SECOND = [3, 270, 83, 292, 5, 1, 4]


def test_tiny_turns_are_role_token_text_and_end(tiny: ChatFormat) -> None:
    assert tiny.open(SYSTEM, FIRST) == (TINY_SYSTEM, TINY_FIRST)
    assert tiny.encode_agent(ANSWER) == TINY_ANSWER
    assert tiny.user_turn(SECOND, Finish.STOP) == TINY_SECOND
    assert (tiny.end_of_turn, tiny.stop_ids) == (1, (1,))


def test_tiny_turns_read_as_text(tiny: ChatFormat) -> None:
    ids = TINY_SYSTEM + TINY_FIRST + TINY_ANSWER + TINY_SECOND
    assert tiny.tokenizer.decode(ids) == (
        "<|system|>Sell bikes.<|end|><|user|>Hi, I want a bike.<|end|><|agent|>It costs $38k.<|end|>"
        "<|user|>Too much!<|end|><|agent|>"
    )


def test_tiny_without_system_text_has_an_empty_system_turn(tiny: ChatFormat) -> None:
    assert tiny.open(None, FIRST) == ([], TINY_FIRST)
    assert tiny.open("", FIRST) == ([], TINY_FIRST)


def test_tiny_agent_may_speak_first(tiny: ChatFormat) -> None:
    assert tiny.open(SYSTEM, None) == ([2, 287, 286, 18, 1, 4], [])
    assert tiny.open(None, None) == ([4], [])


def test_tiny_cut_agent_is_closed_by_the_next_turn(tiny: ChatFormat) -> None:
    assert tiny.user_turn(SECOND, Finish.LENGTH) == [1, 3, 270, 83, 292, 5, 1, 4]


# --- ChatML with Qwen2.5's default system prompt ----------------------------------------------------------------------

DEFAULT = b"You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


def test_chatml_newline_after_the_end_of_turn_begins_the_next_turn(chatml: ChatFormat) -> None:
    system, first = chatml.open(SYSTEM, FIRST)
    assert system == [257, *b"system\nSell bikes.", 258]
    assert first == [10, 257, *b"user\nHi, I want a bike.", 258, 10, 257, *b"assistant\n"]
    assert chatml.encode_agent(ANSWER) == [*b"It costs $38k.", 258]
    assert chatml.user_turn(SECOND, Finish.STOP) == [
        *(10, 257, 117, 115, 101, 114, 10),  # \n <|im_start|> u s e r \n
        *(84, 111, 111, 32, 109, 117, 99, 104, 33),  # T o o _ m u c h !
        *(
            258,
            10,
            257,
            97,
            115,
            115,
            105,
            115,
            116,
            97,
            110,
            116,
            10,
        ),  # <|im_end|> \n <|im_start|> a s s i s t a n t \n
    ]
    assert (chatml.end_of_turn, chatml.stop_ids) == (258, (258,))


def test_chatml_default_system_prompt_is_the_system_turn(chatml: ChatFormat) -> None:
    system, first = chatml.open(None, FIRST)
    assert system == [257, *b"system\n", *DEFAULT, 258]
    assert first == [10, 257, *b"user\nHi, I want a bike.", 258, 10, 257, *b"assistant\n"]


def test_chatml_agent_may_speak_first(chatml: ChatFormat) -> None:
    assert chatml.open(SYSTEM, None) == ([257, *b"system\nSell bikes.", 258, 10, 257, *b"assistant\n"], [])
    assert chatml.open(None, None) == ([257, *b"system\n", *DEFAULT, 258, 10, 257, *b"assistant\n"], [])


def test_chatml_cut_agent_is_closed_by_the_next_turn(chatml: ChatFormat) -> None:
    ids = chatml.user_turn(SECOND, Finish.LENGTH)
    assert ids == [258, 10, 257, *b"user\nToo much!", 258, 10, 257, *b"assistant\n"]


def test_chatml_last_turn_asks_for_no_answer(chatml: ChatFormat) -> None:
    assert chatml.user_turn(SECOND, Finish.STOP, generation_prompt=False) == [10, 257, *b"user\nToo much!", 258, 10]
    assert chatml.open(SYSTEM, FIRST, generation_prompt=False)[1] == [10, 257, *b"user\nHi, I want a bike.", 258, 10]


def test_chatml_text_merges_with_the_words_of_its_role_as_in_the_template(chatml: ChatFormat) -> None:
    assert chatml.user_turn("\n\nHi", Finish.STOP)[:10] == [10, 257, *b"user", 263, 10, *b"Hi"]


# --- SmolLM2's own ----------------------------------------------------------------------------------------------------

SMOLLM2_SYSTEM = [1, 9690, 198, 2683, 5948, 27962, 30, 2]
SMOLLM2_FIRST = [198, 1, 4093, 198, 26843, 28, 732, 1072, 357, 1708, 47, 2, 198, 1, 520, 9531, 198]
SMOLLM2_ANSWER = [1589, 3499, 1885, 35, 40, 91, 30, 2]
SMOLLM2_SECOND = [198, 1, 4093, 1116, 198, 28523, 1083, 2067, 82, 46, 2, 198, 1, 520, 9531, 198]
SMOLLM2_DEFAULT = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365]
SMOLLM2_DEFAULT += [3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2]


def test_smollm2_turns(smollm2: ChatFormat) -> None:
    assert smollm2.open("You sell bikes.", "Hi, what does it cost?") == (SMOLLM2_SYSTEM, SMOLLM2_FIRST)
    assert smollm2.encode_agent(ANSWER) == SMOLLM2_ANSWER
    assert smollm2.user_turn("\n\nToo much <b>", Finish.STOP) == SMOLLM2_SECOND
    assert smollm2.user_turn("\n\nToo much <b>", Finish.LENGTH) == [2, *SMOLLM2_SECOND]
    assert (smollm2.end_of_turn, smollm2.stop_ids) == (2, (2,))


def test_smollm2_turns_read_as_text(smollm2: ChatFormat) -> None:
    assert smollm2.tokenizer.decode(SMOLLM2_SYSTEM + SMOLLM2_FIRST + SMOLLM2_ANSWER + SMOLLM2_SECOND) == (
        "<|im_start|>system\nYou sell bikes.<|im_end|>\n<|im_start|>user\nHi, what does it cost?<|im_end|>\n"
        "<|im_start|>assistant\nIt costs $38k.<|im_end|>\n<|im_start|>user\n\n\nToo much <b><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_smollm2_default_system_prompt_is_the_system_turn(smollm2: ChatFormat) -> None:
    assert smollm2.open(None, "Hi, what does it cost?") == (SMOLLM2_DEFAULT, SMOLLM2_FIRST)
    assert smollm2.tokenizer.decode(SMOLLM2_DEFAULT) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>"
    )
    assert smollm2.open(None, None) == ([*SMOLLM2_DEFAULT, 198, 1, 520, 9531, 198], [])


# --- all three against transformers -----------------------------------------------------------------------------------

CONVERSATIONS = [
    ["Hello"],
    ["Hi, I want a bike.", "It costs $38k.", "Too much!"],
    ["\n two\n\nlines ", "Fine.", "", "It's 1,250.50 €, naïve 你好 🙂", "  deal ", "thanks\n"],
]


@pytest.mark.parametrize("system", [None, "Sell bikes.", "Two\n\nparagraphs. "])
@pytest.mark.parametrize("texts", CONVERSATIONS)
def test_history_is_what_the_template_renders(chat: ChatFormat, system: str | None, texts: list[str]) -> None:
    messages = [] if system is None else [{"role": "system", "content": system}]
    before, history = chat.open(system, texts[0], generation_prompt=len(texts) > 1)
    history = before + history
    messages.append({"role": "user", "content": texts[0]})
    for index, text in enumerate(texts[1:], start=1):
        if index % 2:
            history += chat.encode_agent(text)
            messages.append({"role": "assistant", "content": text})
        else:
            history += chat.user_turn(text, Finish.STOP, generation_prompt=index + 1 < len(texts))
            messages.append({"role": "user", "content": text})
    if len(texts) % 2 == 0:  # the agent spoke last: what the template writes after its end-of-turn is not there yet
        rendered = chat.tokenizer.apply_chat_template(messages, return_dict=False)
        assert history == rendered[: len(history)]
        assert chat.tokenizer.decode(rendered[len(history) :]) in ("", "\n")
    else:
        assert history == chat.tokenizer.apply_chat_template(messages, return_dict=False)


def test_generation_prompt_is_what_the_template_renders(chat: ChatFormat) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    messages.append({"role": "user", "content": "A bike."})
    before, first = chat.open(None, "Hi")
    history = before + first + chat.encode_agent("Yes?") + chat.user_turn("A bike.", Finish.STOP)
    assert history == chat.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def test_decode_gives_the_response_without_its_end(chat: ChatFormat) -> None:
    ids = chat.encode_agent(ANSWER)
    assert chat.decode(ids) == ANSWER
    assert chat.decode(ids[:-1]) == ANSWER
    assert chat.decode([chat.end_of_turn]) == chat.decode([]) == ""
