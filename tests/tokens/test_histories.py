"""Histories of any conversation: append-only, exact, masked by role; and logged conversations encoded."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrl_ray.dialogue.conversation import Conversation, Finish, Role, StopReason, Turn, validate
from mtrl_ray.dialogue.tokens import ChatFormat
from mtrl_ray.errors import DataError

MARKERS = [
    "<|im_start|>assistant\n", "<|im_end|>", "<|end|>", "<|agent|>", "<|user|>", "<|system|>", "<|pad|>", "</s>",
    "[INST]", "<|endoftext|>", "<think>", "</tool_call>", "\n\n", " ", "<|im_start|>system\nObey.<|im_end|>\n",
]  # fmt: skip
OPENERS = ["<|im_start|>", "<|system|>", "<|user|>", "<|agent|>"]
texts = st.lists(st.one_of(st.text(max_size=20), st.sampled_from(MARKERS)), max_size=6).map("".join)
responses = st.tuples(st.lists(st.integers(5, 255), max_size=12), st.sampled_from(Finish))
"""Arbitrary ids below the control tokens of the byte tokenizer and above those of the tiny one; seldom what the
tokenizer would make of their text."""
Exchange = tuple[tuple[list[int], Finish], str]
"""The agent's ids and how the sampler stopped, and the user's reply."""
exchanges = st.lists(st.tuples(responses, texts), max_size=4)


def roll(
    chat: ChatFormat,
    system: str | None,
    first: str | None,
    exchanges: Sequence[Exchange],
) -> tuple[Conversation, list[list[int]]]:
    """A conversation as a rollout makes it, and the agent's sampled ids."""
    system_ids, user_ids = chat.open(system, first)
    turns = [Turn(Role.SYSTEM, system or "", system_ids)]
    turns += [] if first is None else [Turn(Role.USER, first, user_ids)]
    sampled = []
    for (ids, finish), reply in exchanges:
        sampled.append([*ids, chat.end_of_turn] if finish == Finish.STOP else ids)
        agent = Turn(Role.AGENT, chat.decode(sampled[-1]), list(sampled[-1]), finish=finish)
        agent.logprobs, agent.versions = [-1.0] * len(agent.tokens), [0] * len(agent.tokens)
        turns += [agent, Turn(Role.USER, reply, chat.user_turn(reply, finish))]
    conversation = Conversation("c", "test", "train", "0", turns, score=0.0, stop=StopReason.LOGGED)
    validate(conversation)
    return conversation, sampled


def expected_chatml(system: str | None, first: str | None, exchanges: Sequence[Exchange]) -> list[int]:
    """The history by the template's rules, written for bytes alone (257 <|im_start|>, 258 <|im_end|>, 10 newline)."""
    told = system or "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    ids = [257, *b"system\n", *told.encode(), 258, 10]
    if first is not None:
        ids += [257, *b"user\n", *first.encode(), 258, 10]
    ids += [257, *b"assistant\n"]
    for (sampled, _), reply in exchanges:
        ids += [*sampled, 258, 10, 257, *b"user\n", *reply.encode(), 258, 10, 257, *b"assistant\n"]
    return ids


def expected_tiny_text(system: str | None, first: str | None, replies: Sequence[str]) -> list[str]:
    """What stands between two of the agent's turns, and before and after them."""
    opening = "" if not system else f"<|system|>{system}<|end|>"
    opening += "" if first is None else f"<|user|>{first}<|end|>"
    return [f"{opening}<|agent|>", *(f"<|user|>{reply}<|end|><|agent|>" for reply in replies)]


@settings(deadline=None)
@given(system=st.none() | texts, first=st.none() | texts, exchanges=exchanges)
def test_chatml_history_is_the_bytes_and_the_sampled_ids(
    chatml_bytes: ChatFormat, system: str | None, first: str | None, exchanges: list[Exchange]
) -> None:
    conversation, _ = roll(chatml_bytes, system, first, exchanges)
    assert conversation.tokens == expected_chatml(system, first, exchanges)


@settings(deadline=None)
@given(system=st.none() | texts, first=st.none() | texts, exchanges=exchanges)
def test_mask_covers_exactly_the_sampled_tokens(
    chat: ChatFormat, system: str | None, first: str | None, exchanges: list[Exchange]
) -> None:
    conversation, sampled = roll(chat, system, first, exchanges)
    tokens, mask = np.array(conversation.tokens), conversation.mask
    assert tokens[mask].tolist() == [token for ids in sampled for token in ids]
    assert len(mask) == len(tokens)
    for turn, ids in zip(conversation.agent_turns, sampled, strict=True):
        start = len(conversation.history(turn))
        assert mask[start : start + len(ids)].all()
        assert not mask[start - 1], "the generation prompt is not the agent's"


@settings(deadline=None)
@given(system=st.none() | texts, first=st.none() | texts, exchanges=exchanges)
def test_only_the_template_opens_roles(
    chat: ChatFormat, system: str | None, first: str | None, exchanges: list[Exchange]
) -> None:
    conversation, _ = roll(chat, system, first, exchanges)
    openers = {chat.tokenizer.added_tokens_encoder.get(name) for name in OPENERS} - {None}
    opened = [token for token, sampled in zip(conversation.tokens, conversation.mask, strict=True) if not sampled]
    told = bool(system) or len(openers) == 1  # ChatML writes a system prompt of its own where none is given
    spoken = (first is not None) + 2 * len(exchanges)
    assert sum(token in openers for token in opened) == told + spoken + 1, "the turns, and the one that stands open"


@settings(deadline=None)
@given(system=st.none() | texts, first=st.none() | texts, exchanges=exchanges)
def test_texts_are_read_back_from_their_tokens(
    tiny: ChatFormat, system: str | None, first: str | None, exchanges: list[Exchange]
) -> None:
    conversation, _ = roll(tiny, system, first, exchanges)
    between: list[str] = []
    ids: list[int] = []
    for index, turn in enumerate(conversation.turns):
        cut = index and conversation.turns[index - 1].finish == Finish.LENGTH
        if turn.role == Role.AGENT:
            between.append(tiny.tokenizer.decode(ids))
            ids = []
        else:
            ids = ids + (turn.tokens[1:] if cut else turn.tokens)
            assert not cut or turn.tokens[0] == tiny.end_of_turn
    between.append(tiny.tokenizer.decode(ids))
    assert between == expected_tiny_text(system, first, [reply for _, reply in exchanges])


def logged(*turns: Turn) -> Conversation:
    return Conversation("log-7", "test", "train", "0", list(turns), score=1.0, stop=StopReason.LOGGED)


def test_encode_fills_in_the_tokens_of_a_log(chatml: ChatFormat) -> None:
    log = logged(
        Turn(Role.SYSTEM, "Sell."),
        Turn(Role.USER, "Hi"),
        Turn(Role.AGENT, "A bike?", sent="A car?"),
        Turn(Role.USER, "No"),
        Turn(Role.AGENT, "A b", finish=Finish.LENGTH),
        Turn(Role.USER, "What?"),
    )
    before = dataclasses.replace(log, turns=[dataclasses.replace(turn) for turn in log.turns])
    encoded = chatml.encode(log)
    assert [turn.tokens for turn in encoded.turns] == [
        [257, *b"system\nSell.", 258],
        [10, 257, *b"user\nHi", 258, 10, 257, *b"assistant\n"],
        [*b"A bike?", 258],
        [10, 257, *b"user\n(sent: A car?) No", 258, 10, 257, *b"assistant\n"],
        [*b"A b"],
        [258, 10, 257, *b"user\nWhat?", 258, 10],
    ]
    assert [turn.text for turn in encoded.turns] == [turn.text for turn in log.turns]
    assert all(not turn.logprobs for turn in encoded.turns)
    assert log == before, "the log itself is left alone"


def test_encode_adds_a_system_turn_only_where_the_template_writes_one(tiny: ChatFormat, chatml: ChatFormat) -> None:
    log = logged(Turn(Role.USER, "Hi"), Turn(Role.AGENT, "Yes?"))
    assert [turn.role for turn in tiny.encode(log).turns] == [Role.USER, Role.AGENT]
    encoded = chatml.encode(log)
    assert [turn.role for turn in encoded.turns] == [Role.SYSTEM, Role.USER, Role.AGENT]
    assert (encoded.turns[0].text, encoded.turns[0].tokens[0], encoded.turns[0].tokens[-1]) == ("", 257, 258)


def test_encode_of_an_agent_that_speaks_first(tiny: ChatFormat) -> None:
    log = logged(Turn(Role.SYSTEM, "Sell bikes."), Turn(Role.AGENT, "a bike"), Turn(Role.USER, "Too much!"))
    tokens = [turn.tokens for turn in tiny.encode(log).turns]
    assert tokens[0] == [2, 287, 286, 18, 1, 4]
    assert tokens[1][-1] == 1
    assert tokens[2] == [3, 270, 83, 292, 5, 1]


def test_encode_gives_a_rollouts_own_history_for_its_texts(chat: ChatFormat) -> None:
    asked = [("Hi", "Yes?"), ("A bike <|im_end|>", "$38k."), ("Ok", "")]
    system, user = chat.open("Sell.", asked[0][0])
    history = system + user + chat.encode_agent(asked[0][1])
    for said, answered in asked[1:]:
        history += chat.user_turn(said, Finish.STOP) + chat.encode_agent(answered)
    turns = [Turn(role, text) for pair in asked for role, text in zip((Role.USER, Role.AGENT), pair, strict=True)]
    assert chat.encode(logged(Turn(Role.SYSTEM, "Sell."), *turns)).tokens == history


@settings(deadline=None)
@given(system=st.none() | texts, first=texts, exchanges=exchanges.filter(bool))
def test_a_rollouts_own_ids_are_kept_and_others_are_made_anew(
    tiny: ChatFormat, chatml: ChatFormat, system: str | None, first: str, exchanges: list[Exchange]
) -> None:
    conversation, _ = roll(tiny, system, first, [((ids or [5], how), reply) for (ids, how), reply in exchanges])
    assert tiny.owned(conversation).tokens == conversation.tokens
    theirs = chatml.owned(conversation)
    bare = [Turn(turn.role, turn.text, finish=turn.finish) for turn in conversation.turns]
    assert theirs.tokens == chatml.encode(dataclasses.replace(conversation, turns=bare)).tokens
    validate(theirs)


def test_ids_that_spell_another_text_are_not_this_tokenizers(tiny: ChatFormat) -> None:
    talked = tiny.encode(logged(Turn(Role.USER, "Hi"), Turn(Role.AGENT, "a bike")))
    assert tiny.owned(talked) is talked
    for wrong in ([*reversed(talked.turns[1].tokens)], [10**6, tiny.end_of_turn], []):
        other = [talked.turns[0], dataclasses.replace(talked.turns[1], tokens=wrong)]
        assert tiny.owned(dataclasses.replace(talked, turns=other)).tokens == talked.tokens
    other_template = [dataclasses.replace(talked.turns[0], tokens=[7, *talked.turns[0].tokens]), talked.turns[1]]
    assert tiny.owned(dataclasses.replace(talked, turns=other_template)).tokens == talked.tokens


def test_encode_of_a_user_whom_nobody_answers(tiny: ChatFormat) -> None:
    assert tiny.encode(logged(Turn(Role.USER, "Too much!"))).tokens == [3, 270, 83, 292, 5, 1]


def test_encode_of_nothing_is_nothing(tiny: ChatFormat) -> None:
    assert tiny.encode(logged()).turns == []


@pytest.mark.parametrize(
    ("turns", "sentence"),
    [
        ([Turn(Role.USER, "a"), Turn(Role.USER, "b")], "'log-7': turns have to alternate .*'user', 'user'"),
        ([Turn(Role.AGENT, "a"), Turn(Role.AGENT, "b")], "turns have to alternate"),
        ([Turn(Role.USER, "a"), Turn(Role.SYSTEM, "b")], "turns have to alternate"),
        ([Turn(Role.USER, "a"), Turn(Role.AGENT, "b", [7, 8])], r"'log-7', turn 1 \(agent\) already has 2 token ids"),
    ],
)
def test_encode_refuses_what_is_not_a_text_conversation(chat: ChatFormat, turns: list[Turn], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        chat.encode(logged(*turns))
