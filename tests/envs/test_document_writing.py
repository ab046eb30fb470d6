"""The score of `document_writing` is sacrebleu's on words, and tone and length decide it; both sides read free text."""

import itertools

import pytest
import sacrebleu

from mtrl_envs.document_writing.agents import QUESTIONS, Writer
from mtrl_envs.document_writing.environment import SYSTEM_WITH_TEMPLATES
from mtrl_envs.document_writing.moves import finished, told, writer_move
from mtrl_envs.document_writing.texts import KINDS, LENGTHS, TEMPLATES, TONES, TOPICS, attainable, bleu, document
from mtrl_envs.document_writing.user import REQUESTS, SAYINGS
from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import Role

FACTS = {"tone": "formal", "length": "short", "day": "Friday", "hour": 6, "place": "garden"}


def test_the_score_is_word_level_bleu() -> None:
    target = document("invitation", "party", FACTS)
    assert bleu(target, target) == 1.0
    text = target.replace("Friday", "Fridax")
    assert bleu(text, target) == pytest.approx(sacrebleu.corpus_bleu([text], [[target]]).score / 100)
    assert bleu(text, target) == bleu(target.replace("Friday", "Sunday"), target)
    assert bleu(text, target) < sacrebleu.corpus_bleu([text], [[target]], tokenize="char").score / 100 - 0.05
    assert bleu("", target) == bleu("qwertz", target) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_tone_or_length_scores_low(kind: str) -> None:
    styles = list(itertools.product(TONES, LENGTHS))
    for right, wrong in itertools.permutations(styles, 2):
        target, other = (
            document(kind, "party", FACTS | {"tone": tone, "length": length}) for tone, length in (right, wrong)
        )
        assert bleu(other, target) < 0.4


def test_templates_take_every_fact_and_little_room() -> None:
    assert set(TEMPLATES) == set(itertools.product(KINDS, TONES, LENGTHS))
    for template in TEMPLATES.values():
        assert all(f"{{{key}}}" in template for key in ("event", "day", "hour", "place"))
        assert 8 <= len(template.split()) <= 40
        assert template in SYSTEM_WITH_TEMPLATES


def test_what_is_attainable_grows_with_what_is_told() -> None:
    for kind in KINDS:
        for size in range(4):
            for topics in itertools.combinations(TOPICS, size):
                before = attainable(kind, "casual", "long", frozenset(topics))
                more = [attainable(kind, "casual", "long", frozenset({*topics, topic})) for topic in TOPICS]
                assert all(after >= before - 1e-9 for after in more)
        assert attainable(kind, "casual", "long", frozenset(TOPICS)) == 1.0


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("What time does it start?", ("when",)),
        ("Which day would suit you?", ("when",)),
        ("Could you tell me the venue?", ("where",)),
        ("Where will it be held?", ("where",)),
        ("Who is the audience?", ("tone",)),
        ("Should it sound friendly or polite?", ("tone",)),
        ("How many words should it have?", ("length",)),
        ("Would you like a brief text?", ("length",)),
        ("When and where is it?", ("when", "where")),
        ("Can you give me more details?", TOPICS),
        ("It will be held in the garden.", ()),
        ("Do you like it?", ()),
    ],
)
def test_questions_are_understood_in_other_words(text: str, asks: tuple[str, ...]) -> None:
    assert writer_move(text).asks == asks


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Final: Dear all, come.", "Dear all, come."),
        ("Here is your invitation: Dear all, come. Is it fine?", "Dear all, come. Is it fine?"),
        ("Here you go:\n\nDear all,\n come.", "Dear all, come."),
        ("FINAL TEXT:  Hi!", "Hi!"),
        (
            "Dear guests, please come to our party on Friday at 6.",
            "Dear guests, please come to our party on Friday at 6.",
        ),
        ("Final:", None),
        ("Dear guests, hello.", None),
        ("I see, and when will the party in the garden take place?", None),
    ],
)
def test_what_counts_as_the_document(text: str, written: str | None) -> None:
    assert finished(text) == written


def test_agents_understand_every_saying_of_the_client() -> None:
    for kind, requests in REQUESTS.items():
        assert all(told(text.format(event="picnic")) == {"kind": kind, "event": "picnic"} for text in requests)
    expected = {"when": {"day": "Friday", "hour": 6}, "where": {"place": "garden"}}
    expected |= {tone: {"tone": tone} for tone in TONES} | {length: {"length": length} for length in LENGTHS}
    for saying, variants in SAYINGS.items():
        assert all(told(text.format(**FACTS)) == expected[saying] for text in variants)


def test_a_correction_overrides() -> None:
    messages = [
        "I need an invitation to our party. Short, please.",
        "It is Monday at 4. Formal, please.",
        "Wait, that was wrong. It is Friday at 6. In the garden.",
    ]
    answer = Writer("expert", 0).respond([(Role.USER, text) for text in messages])
    assert finished(answer) == document("invitation", "party", FACTS)


def test_clients_understand_every_phrase_of_the_agents() -> None:
    environment = make("document_writing")
    for topic, variants in QUESTIONS.items():
        for text in variants:
            spoken = text.format(event="workshop")
            assert writer_move(spoken).asks == (topic,)
            assert environment.well_formed(spoken)
    for kind, tone, length in TEMPLATES:
        text = document(kind, "party", FACTS | {"tone": tone, "length": length})
        assert finished(f"Final: {text}") == text
        assert environment.well_formed(f"Final: {text}")
