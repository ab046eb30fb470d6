"""The word problems of `math_tutoring`: five families of stories, two numbers each, and a wish for the answer.

1. A family is one operation in a story (`x`, `+`, `-`, `:`), with the questions for its numbers and the answers.
2. A wish is a second operation on the result: none (`exact`), rounded to the nearest ten, or doubled.
3. Numbers are small, so that a model of half a million parameters can learn the arithmetic. Divisions have no remainder.
"""

import random
import re
from dataclasses import dataclass

from mtrl_envs.scripted.intents import phrases
from mtrl_envs.scripted.splits import Profile

TOPICS = ("first", "second", "wish")
"""The two numbers of a problem, and the wish for the answer."""

WISHES: dict[str, float] = {"exact": 0.5, "rounded": 0.25, "doubled": 0.25}
"""Wishes and their probabilities."""

EQUATIONS = {"x": "{} x {} = {}", "+": "{} + {} = {}", "-": "{} - {} = {}", ":": "{} : {} = {}"}


@dataclass(frozen=True)
class Family:
    """A kind of story. `asks`, `tells`: patterns of questions about a topic and of statements of it, by topic."""

    sign: str
    things: tuple[str, ...]
    requests: tuple[str, ...]
    questions: dict[str, tuple[str, ...]]
    answers: dict[str, tuple[str, ...]]
    asks: dict[str, re.Pattern[str]]
    tells: dict[str, re.Pattern[str]]


_HOW_MANY = r"(how many|number of|amount of|count|quantity)\b"

FAMILIES: dict[str, Family] = {
    "cost": Family(
        sign="x",
        things=("pens", "books", "cups"),
        requests=("What do my {thing} cost?", "How much do I pay for the {thing}?"),
        questions={
            "first": ("How many {thing} do you buy?", "How many {thing} is it?"),
            "second": ("What does one cost?", "How much is each?"),
        },
        answers={
            "first": ("{n} {thing}.", "I buy {n} {thing}."),
            "second": ("{n} dollars each.", "One costs {n} dollars."),
        },
        asks={
            "first": phrases(_HOW_MANY),
            "second": phrases(r"(price|prices|cost|costs|expensive|dollars?)\b", r"how much\b", r"(each|per) "),
        },
        tells={"first": phrases(r"(\d+) (?:pens|books|cups)\b"), "second": phrases(r"(\d+) dollars?\b")},
    ),
    "travel": Family(
        sign="x",
        things=("bike", "boat", "bus"),
        requests=("How far do I get by {thing}?", "How many miles is my trip by {thing}?"),
        questions={
            "first": ("How many hours does it take?", "How long do you travel?"),
            "second": ("How fast do you go?", "What is your speed?"),
        },
        answers={
            "first": ("{n} hours.", "It takes {n} hours."),
            "second": ("{n} miles an hour.", "I make {n} miles an hour."),
        },
        asks={
            "first": phrases(r"(how long|hours|time|duration)\b"),
            "second": phrases(r"(fast|speed|pace|quick|quickly|mph)\b", r"(an|per|each|every) hour\b"),
        },
        tells={"first": phrases(r"(\d+) hours\b"), "second": phrases(r"(\d+) miles\b")},
    ),
    "gather": Family(
        sign="+",
        things=("apples", "stamps", "shells"),
        requests=("How many {thing} do we have together?", "How many {thing} are there in all?"),
        questions={
            "first": ("How many do you have?", "How many {thing} are yours?"),
            "second": ("How many does your friend have?", "How many are from your friend?"),
        },
        answers={"first": ("I have {n}.", "{n} are mine."), "second": ("My friend has {n}.", "My friend brings {n}.")},
        asks={
            "first": phrases(r"(do|did) you\b", r"you (have|own|bring)\b", r"yours\b", r"your own\b"),
            "second": phrases(r"(friends?|other|others|else|second)\b", r"(he|she|they) (have|has|bring|brings)\b"),
        },
        tells={
            "first": phrases(r"i have (\d+)\b", r"(\d+) are mine\b"),
            "second": phrases(r"friend (?:has|brings) (\d+)\b"),
        },
    ),
    "left": Family(
        sign="-",
        things=("cookies", "cards", "plums"),
        requests=("How many {thing} are left?", "How many {thing} do I still have?"),
        questions={
            "first": ("How many were there at first?", "How many {thing} did you start with?"),
            "second": ("How many are gone?", "How many did you lose?"),
        },
        answers={"first": ("There were {n}.", "At first I had {n}."), "second": ("{n} are gone.", "I lost {n}.")},
        asks={
            "first": phrases(
                r"(at first|begin|beginning|begun|start|started|originally|initially|were there|before)\b"
            ),
            "second": phrases(r"(gone|lost|lose|eat|ate|eaten|away|taken|took|used|sold|spent|missing|fewer)\b"),
        },
        tells={
            "first": phrases(r"there were (\d+)\b", r"first i had (\d+)\b"),
            "second": phrases(r"(\d+) are gone\b", r"i lost (\d+)\b"),
        },
    ),
    "share": Family(
        sign=":",
        things=("sweets", "nuts", "balls"),
        requests=("How many {thing} does each child get?", "How do I share the {thing} fairly?"),
        questions={
            "first": ("How many {thing} are there?", "How many {thing} do you have?"),
            "second": ("How many children are there?", "Among how many children?"),
        },
        answers={"first": ("{n} {thing}.", "I have {n} {thing}."), "second": ("{n} children.", "For {n} children.")},
        asks={
            "first": phrases(
                _HOW_MANY + r"[^?]{0,20}\b(sweets|nuts|balls|things|items|pieces)\b", r"(in total|in all)\b"
            ),
            "second": phrases(r"(child|children|kids?|friends|people|persons?)\b", r"(how many|who) (share|get)"),
        },
        tells={"first": phrases(r"(\d+) (?:sweets|nuts|balls)\b"), "second": phrases(r"(\d+) children\b")},
    ),
}

WISH_QUESTIONS = ("Exact, rounded or doubled?", "Any wish for the answer?", "How do you want the answer?")
WISH_ANSWERS: dict[str, tuple[str, ...]] = {
    "exact": ("The exact number.", "Exact, please."),
    "rounded": ("Round it to tens.", "Rounded to tens, please."),
    "doubled": ("Double it, I need it twice.", "Doubled, please."),
}


def result(family: str, first: int, second: int) -> int:
    """The result of a story's operation."""
    sign = FAMILIES[family].sign
    return {"x": first * second, "+": first + second, "-": first - second, ":": first // second}[sign]


def wished(number: int, wish: str) -> int:
    """A result after the wish is applied; 15 is rounded to 20."""
    return {"exact": number, "rounded": (number + 5) // 10 * 10, "doubled": 2 * number}[wish]


def solution(problem: Profile) -> int:
    """The right final answer of a problem."""
    return wished(result(problem["family"], problem["first"], problem["second"]), problem["wish"])


def numbers(rng: random.Random, sign: str) -> tuple[int, int]:
    """Draw the two numbers of a story with operation `sign`."""
    if sign == ":":
        children = rng.randint(2, 5)
        return children * rng.randint(2, 9), children
    return rng.randint(11, 18) if sign == "-" else rng.randint(2, 9), rng.randint(2, 6)


def sample_problem(rng: random.Random) -> Profile:
    """A problem: family, thing, the two numbers, the wish."""
    name = rng.choice(list(FAMILIES))
    first, second = numbers(rng, FAMILIES[name].sign)
    wish = rng.choices(list(WISHES), weights=list(WISHES.values()))[0]
    return {"family": name, "thing": rng.choice(FAMILIES[name].things), "first": first, "second": second, "wish": wish}
