"""The pupil of `math_tutoring`: has a word problem and tells its numbers and its wish if asked.

The final answer is right or wrong: score 1 or 0. The attainable score is the probability to guess the untold facts. The first
number is the most informative (eight values), then the second (five; four in divisions), then the wish (half are `exact`).
"""

import math
import random
from typing import Any

from mtrl_envs.base import Outcome
from mtrl_envs.math_tutoring.moves import as_number, tutor_move
from mtrl_envs.math_tutoring.problems import FAMILIES, WISH_ANSWERS, WISHES, numbers, solution
from mtrl_envs.scripted.telling import Move, TellingUser

GUESSED = {"first": 1 / 8, "second": 1 / 5, "wish": max(WISHES.values())}
"""Probability to guess a fact; 1 / 4 for a divisor."""


class Pupil(TellingUser):
    """A scripted pupil. `problem`: family, thing, first, second, wish, told, patience."""

    def __init__(self, key: str, problem: dict[str, Any], noise: float) -> None:
        super().__init__(key, problem["told"], problem["patience"], noise)
        self._problem = problem
        self._family = FAMILIES[problem["family"]]

    def request(self) -> str:
        """The story's question."""
        return self.rng.choice(self._family.requests).format(thing=self._problem["thing"])

    def read(self, response: str) -> Move:
        """Parse a response about this story into its intents."""
        return tutor_move(response, self._family)

    def tell(self, topic: str) -> str:
        """A sentence with a number or the wish."""
        return self._state(topic, self._problem[topic])

    def mistake(self, topic: str) -> str:
        """A sentence with a wrong number or a wrong wish."""
        right = self._problem[topic]
        if topic == "wish":
            return self._state(topic, self.rng.choice([wish for wish in WISHES if wish != right]))
        return self._state(topic, another_number(self.rng, self._problem, topic))

    def grade(self, answer: str) -> Outcome:
        """Score 1 for the right number, otherwise 0."""
        given = as_number(answer)
        correct = float(given is not None and math.isclose(given, solution(self._problem), abs_tol=1e-6))
        return Outcome(correct, {"correct": correct, "answered": float(given is not None)})

    def attainable(self, told: frozenset[str]) -> float:
        """The probability to guess the other facts."""
        chances = GUESSED | ({"second": 1 / 4} if self._family.sign == ":" else {})
        return math.prod(chance for topic, chance in chances.items() if topic not in told)

    def _state(self, topic: str, value: object) -> str:
        if topic == "wish":
            return self.rng.choice(WISH_ANSWERS[str(value)])
        return self.rng.choice(self._family.answers[topic]).format(n=value, thing=self._problem["thing"])


def another_number(rng: random.Random, problem: dict[str, Any], topic: str) -> int:
    """A plausible number that differs from the problem's."""
    at = ("first", "second").index(topic)
    while (number := numbers(rng, FAMILIES[problem["family"]].sign)[at]) == problem[topic]:
        pass
    return number
