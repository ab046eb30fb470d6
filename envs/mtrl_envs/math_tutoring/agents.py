"""Scripted tutors of `math_tutoring`: `expert`, `greedy`, `random` (see `scripted.asking`); they show their calculation."""

from collections.abc import Sequence
from typing import ClassVar

from mtrl_envs.math_tutoring.moves import family_of, told
from mtrl_envs.math_tutoring.problems import (
    EQUATIONS,
    FAMILIES,
    TOPICS,
    WISH_QUESTIONS,
    Family,
    numbers,
    result,
    wished,
)
from mtrl_envs.scripted.asking import AskingAgent, Known

FINAL = {
    "exact": "{equation}. The answer is {number}.",
    "rounded": "{equation}. Rounded, the answer is {number}.",
    "doubled": "{equation}. Doubled, the answer is {number}.",
}
"""Final answers, by wish."""


OTHERS = {"wish": {"exact": "rounded", "rounded": "doubled", "doubled": "exact"}}
"""Another wish for each."""


class Tutor(AskingAgent):
    """A scripted tutor."""

    topics: ClassVar[tuple[str, ...]] = TOPICS
    turns: ClassVar[int] = 5

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name, f"math_tutoring/{seed}")

    def read(self, messages: Sequence[str]) -> Known:
        """Family and thing of the request, and the known numbers and wish."""
        family = family_of(messages[0]) or FAMILIES["gather"]
        thing = next((thing for thing in family.things if thing in messages[0]), family.things[0])
        facts = {topic: value for message in messages for topic, value in told(message, family).items()}
        return {"family": family, "thing": thing, **facts}

    def question(self, topic: str, known: Known) -> str:
        """A question about a topic, in the words of the story."""
        family: Family = known["family"]
        variants = WISH_QUESTIONS if topic == "wish" else family.questions[topic]
        return self.rng.choice(variants).format(thing=known["thing"])

    def answer(self, known: Known) -> str:
        """The calculation and its result; an unknown wish counts as `exact`."""
        family: Family = known["family"]
        first, second = self._fill(family, known)
        return self._calculate(family, first, second, known.get("wish", "exact"))

    def nonsense(self) -> str:
        """The answer to another problem."""
        family = self.rng.choice(list(FAMILIES.values()))
        return self._calculate(family, *numbers(self.rng, family.sign), self.rng.choice(list(FINAL)))

    def _fill(self, family: Family, known: Known) -> tuple[int, int]:
        """Both numbers; unknown ones are plausible guesses."""
        for _ in range(200):
            first, second = numbers(self.rng, family.sign)
            if (first, second) == (known.get("first", first), known.get("second", second)):
                return first, second
        return known.get("first", first), known.get("second", second)

    def _calculate(self, family: Family, first: int, second: int, wish: str) -> str:
        number = result(next(name for name, own in FAMILIES.items() if own is family), first, second)
        equation = EQUATIONS[family.sign].format(first, second, number)
        return FINAL[wish].format(equation=equation, number=wished(number, wish))
