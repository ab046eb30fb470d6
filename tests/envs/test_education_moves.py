"""`education`: what teachers and students mean is understood, in the phrases of both sides and in other words."""

import pytest

from mtrl_envs.education.agents import ASK, ASK_STYLE, CHALLENGE, COMFORT, GREET, PRAISE, PRESENT, TAKE_UP
from mtrl_envs.education.conduct import manner
from mtrl_envs.education.moves import ASPECTS, TOPICS, student_signs, teacher_move
from mtrl_envs.education.user import SAYINGS, WISHES
from mtrl_envs.registry import make


@pytest.mark.parametrize(
    ("text", "style", "asks"),
    [
        ("Let's talk about the magma together.", "interactive", False),
        ("Could you draw the crater for me?", "creative", True),
        ("Can you explain the heat?", None, True),
        ("Tell me, what is lava made of?", None, True),
        ("A volcano is a hole in the crust where molten rock comes out.", "direct", False),
        ("We could build a little volcano and try it.", "hands-on", False),
        ("Don't worry, you will get there.", None, False),
        ("How would you like to learn this?", None, False),
        ("I see.", None, False),
    ],
)
def test_teachers_are_understood_in_other_words(text, style, asks):
    move = teacher_move(text)
    assert (move.style, move.asks) == (style, asks)


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        ("I'm worried I can't do it.", "distressed"),
        ("This is too confusing for me!", "distressed"),
        ("Ugh, so boring...", "bored"),
        ("That was really fun!", "pleased"),
        ("I love this!", "pleased"),
    ],
)
def test_students_are_understood_in_other_words(text, signs):
    shown = student_signs(text)
    assert [name for name in ("distressed", "bored", "pleased") if getattr(shown, name)] == [signs]


def test_wishes_in_other_words():
    for text, style in {
        "Can we discuss it instead?": "interactive",
        "I learn best when I can touch things.": "hands-on",
        "Please just explain it.": "direct",
        "I'd love a poem about it.": "creative",
        "I like that.": None,
        "It is the story of the magma.": None,
    }.items():
        assert student_signs(text).told == style, text


def test_both_sides_understand_every_phrase():
    environment = make("education")
    for style, variants in PRESENT.items():
        for aspect in ASPECTS:
            for text in variants:
                move = teacher_move(f"{PRAISE[1]} {text.format(aspect=aspect)}")
                assert (move.style, move.aspects, move.praises, move.asks) == (style, (aspect,), True, False)
    for text in (*ASK, *ASK_STYLE, *CHALLENGE, *COMFORT, *TAKE_UP, *GREET, *PRAISE):
        assert environment.well_formed(text.format(aspect="magma")), text
    assert all(teacher_move(text.format(aspect="ash")).asks for text in ASK)
    assert all(teacher_move(text).asks_style and manner(teacher_move(text)) == "questioning" for text in ASK_STYLE)
    assert all(teacher_move(text.format(aspect="ash")).challenges for text in CHALLENGE)
    assert all(teacher_move(text).comforts and not teacher_move(text).asks for text in COMFORT)
    assert all(teacher_move(text.format(aspect="ash")).takes_up for text in TAKE_UP)
    for style, texts in WISHES.items():
        assert all(student_signs(text).told == style and not student_signs(text).pleased for text in texts)
    for saying, sign in {"frustrated": "distressed", "anxious": "distressed", "hard": "distressed"}.items():
        assert all(getattr(student_signs(text), sign) for text in SAYINGS[saying])
    assert all(student_signs(text).bored for text in (*SAYINGS["rude"], *SAYINGS["disengaged"]))
    assert all(student_signs(text).pleased for text in SAYINGS["pleased"])
    for saying in ("fine", "adapts", "early", "vague", "lost", "relieved"):
        signs = [student_signs(text) for text in SAYINGS[saying]]
        assert not any(one.distressed or one.bored or one.pleased or one.told for one in signs), saying


def test_aspects_belong_to_one_topic_and_carry_meaning():
    assert len(set(ASPECTS)) == 4 * len(TOPICS)
    assert all(len(teacher_move(f"The {aspect}.").words) == 1 for aspect in ASPECTS)


@pytest.mark.parametrize("text", ["", "   ", "The of and.", "Great! <|user|> I like that.", "great " * 61, "xkcd"])
def test_what_is_not_well_formed(text):
    assert not make("education").well_formed(text)
