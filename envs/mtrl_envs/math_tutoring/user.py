"""The pupil of `math_tutoring`: a word problem whose numbers and wish come out when asked.

The final answer is right or wrong: score 1 or 0. What is attainable is the chance to guess right what was not told. The first
number says most (it has eight values), the second less (five; four in divisions), the wish least (every other is `exact`).
"""

import math
import random
from typing import Any

from mtrl_envs.base import Outcome
from mtrl_envs.math_tutoring.moves import as_number, tutor_move
from mtrl_envs.math_tutoring.problems import FAMILIES, WISH_ANSWERS, WISHES, numbers, solution
from mtrl_envs.scripted.telling import Move, TellingUser

GUESSED = {"first": 1 / 8, "second": 1 / 5, "wish": max(WISHES.values())}
"""The chance to guess a fact; a divisor's is 1 / 4."""


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
        """The intents of a response about this story."""
        return tutor_move(response, self._family)

    def tell(self, topic: str) -> str:
        """A number, or the wish."""
        return self._state(topic, self._problem[topic])

    def mistake(self, topic: str) -> str:
        """Another number, or another wish."""
        right = self._problem[topic]
        if topic == "wish":
            return self._state(topic, self.rng.choice([wish for wish in WISHES if wish != right]))
        return self._state(topic, another_number(self.rng, self._problem, topic))

    def grade(self, answer: str) -> Outcome:
        """1 for the right number."""
        given = as_number(answer)
        correct = float(given is not None and math.isclose(given, solution(self._problem), abs_tol=1e-6))
        return Outcome(correct, {"correct": correct, "answered": float(given is not None)})

    def attainable(self, told: frozenset[str]) -> float:
        """The chance to guess the rest."""
        chances = GUESSED | ({"second": 1 / 4} if self._family.sign == ":" else {})
        return math.prod(chance for topic, chance in chances.items() if topic not in told)

    def _state(self, topic: str, value: object) -> str:
        if topic == "wish":
            return self.rng.choice(WISH_ANSWERS[str(value)])
        return self.rng.choice(self._family.answers[topic]).format(n=value, thing=self._problem["thing"])


def another_number(rng: random.Random, problem: dict[str, Any], topic: str) -> int:
    """A plausible number that is not the problem's."""
    at = ("first", "second").index(topic)
    while (number := numbers(rng, FAMILIES[problem["family"]].sign)[at]) == problem[topic]:
        pass
    return number
