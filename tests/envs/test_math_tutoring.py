"""The problems of `math_tutoring` have one right answer, and both sides read free text."""

from fractions import Fraction

import pytest

from mtrl_envs.math_tutoring.agents import FINAL, Tutor
from mtrl_envs.math_tutoring.moves import as_number, family_of, told, tutor_move
from mtrl_envs.math_tutoring.problems import EQUATIONS, FAMILIES, WISH_ANSWERS, WISH_QUESTIONS, solution, wished
from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import Role


def test_solutions_are_those_of_the_stories() -> None:
    operations = {"x": lambda a, b: a * b, "+": lambda a, b: a + b, "-": lambda a, b: a - b, ":": Fraction}
    environment, seen = make("math_tutoring"), set()
    for index in range(400):
        problem = environment.context("train", index).hidden
        sign = FAMILIES[problem["family"]].sign
        exact = operations[sign](problem["first"], problem["second"])
        assert exact == int(exact) > 0
        expected = {"exact": exact, "doubled": 2 * exact, "rounded": 10 * int((exact + 5) / 10)}[problem["wish"]]
        assert solution(problem) == expected
        seen.add((sign, problem["wish"]))
    assert len(seen) == 12


@pytest.mark.parametrize(("number", "rounded"), [(4, 0), (5, 10), (12, 10), (15, 20), (49, 50), (54, 50)])
def test_rounding_to_tens(number: int, rounded: int) -> None:
    assert wished(number, "rounded") == rounded


def test_problems_of_the_splits_differ_whatever_the_manner() -> None:
    environment = make("math_tutoring")
    core = ("family", "thing", "first", "second", "wish")
    problems = {
        split: {tuple(environment.context(split, index).hidden[key] for key in core) for index in range(1500)}
        for split in ("train", "test")
    }
    assert not problems["train"] & problems["test"]
    assert len(problems["test"]) > 150


@pytest.mark.parametrize(
    ("family", "text", "asks"),
    [
        ("cost", "Could you tell me the number of pens?", ("first",)),
        ("cost", "How many are you going to buy?", ("first",)),
        ("cost", "And what's the price per pen?", ("second",)),
        ("cost", "They are expensive, each one.", ()),
        ("cost", "How expensive is each one?", ("second",)),
        ("cost", "How many pens, and what does each cost?", ("first", "second")),
        ("travel", "For how long will you be on the road?", ("first",)),
        ("travel", "At what speed do you travel?", ("second",)),
        ("travel", "How many miles per hour?", ("second",)),
        ("gather", "How many do you have yourself?", ("first",)),
        ("gather", "What about your friend: how many are theirs?", ("second",)),
        ("left", "How many did you have before?", ("first",)),
        ("left", "How many were eaten?", ("second",)),
        ("share", "How many sweets do you want to hand out?", ("first",)),
        ("share", "How many kids want some?", ("second",)),
        ("share", "Should I round the result?", ("wish",)),
        ("gather", "Do you prefer an exact answer?", ("wish",)),
        ("gather", "How should the answer look?", ("wish",)),
        ("left", "Could you give me more details?", ("first", "second")),
        ("left", "That is a nice story.", ()),
    ],
)
def test_questions_are_understood_in_other_words(family: str, text: str, asks: tuple[str, ...]) -> None:
    assert tutor_move(text, FAMILIES[family]).asks == asks


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 12.", 12),
        ("3 x 4 = 12. Rounded, the answer is 10.", 10),
        ("So the answer is 3 x 4 = 12.", 12),
        ("The answer is twelve pens.", 12),
        ("You pay $12 in total.", 12),
        ("That makes 12 dollars.", 12),
        ("The total is 12 dollars for 3 pens.", 12),
        ("12", 12),
        ("You get 1,200.", 1200),
        ("The result is 12.0. Is that fine?", 12),
        ("It is -3.", -3),
        ("You have 3 pens. What does one cost?", None),
        ("Is the answer 12?", None),
        ("I do not know the answer.", None),
        ("Model X12 is great.", None),
    ],
)
def test_final_answers(text: str, number: float | None) -> None:
    answer = tutor_move(text, FAMILIES["cost"]).answer
    assert (None if answer is None else as_number(answer)) == number


def test_agents_understand_every_saying_of_the_pupil() -> None:
    for name, family in FAMILIES.items():
        for thing in family.things:
            assert all(family_of(request.format(thing=thing)) is family for request in family.requests), name
            for topic, variants in family.answers.items():
                for text in variants:
                    assert told(text.format(n=7, thing=thing), family) == {topic: 7}
        for wish, variants in WISH_ANSWERS.items():
            assert all(told(text, family) == {"wish": wish} for text in variants)


def test_a_correction_overrides() -> None:
    messages = [
        "What do my pens cost?",
        "3 pens.",
        "Sorry, I was wrong. 5 pens.",
        "One costs 2 dollars. Exact, please.",
    ]
    history = [(Role.USER, text) for text in messages]
    assert Tutor("expert", 0).respond(history) == "5 x 2 = 10. The answer is 10."


def test_pupils_understand_every_phrase_of_the_agents() -> None:
    environment = make("math_tutoring")
    for family in FAMILIES.values():
        for topic, variants in family.questions.items():
            for text in variants:
                spoken = text.format(thing=family.things[0])
                assert tutor_move(spoken, family).asks == (topic,)
                assert environment.well_formed(spoken)
    assert all(tutor_move(text, None).asks == ("wish",) for text in WISH_QUESTIONS)
    for text in FINAL.values():
        for equation in EQUATIONS.values():
            spoken = text.format(equation=equation.format(8, 2, 4), number=77)
            assert tutor_move(spoken, None).answer == "77"
            assert environment.well_formed(spoken)
