"""The patient of `medical`: tells symptom, history and a possible risk factor if asked."""

from statistics import fmean
from typing import Any

from mtrl_envs.base import Outcome
from mtrl_envs.medical.knowledge import ENOUGH, PATIENT, RISKS, TOLD, Condition, consistent, points
from mtrl_envs.medical.moves import doctor_move, verdict
from mtrl_envs.scripted.telling import Move, TellingUser


class Patient(TellingUser):
    """A scripted patient. `case`: condition, complaint, symptom, history, risk, age, told, patience."""

    def __init__(self, key: str, case: dict[str, Any], noise: float) -> None:
        super().__init__(key, case["told"], case["patience"], noise)
        self._case = case

    def request(self) -> str:
        """The complaint, and the age."""
        return f"{self.rng.choice(PATIENT['complaint'][self._case['complaint']])} I am {self._case['age']}."

    def read(self, response: str) -> Move:
        """Parse a response into its intents."""
        return doctor_move(response)

    def tell(self, topic: str) -> str:
        """A sentence on the symptom, the history or the risk."""
        return self.rng.choice(PATIENT[topic][self._case[topic]])

    def mistake(self, topic: str) -> str:
        """A wrong fact; a wrong symptom is that of another condition of the complaint."""
        others = {value for value in TOLD[topic] if value != self._case[topic]}
        if topic == "symptom":
            others &= {condition.symptom for condition in consistent(self._case, frozenset())}
        return self.rng.choice(PATIENT[topic][self.rng.choice(sorted(others))])

    def grade(self, answer: str) -> Outcome:
        """Points of the knowledge table / 10, and whether they are enough."""
        given = verdict(answer)
        advised = self._case["condition"] in given.advised
        return graded(points(self._case, given.diagnosis, advised, given.heeded), bool(answer))

    def attainable(self, told: frozenset[str]) -> float:
        """The expected score of the best diagnosis, with its advice and the most probable risk."""
        return expected(self._case, told) / 10


def graded(number: float, answered: bool) -> Outcome:
    """The outcome for a number of points: score (points / 10), and whether they are enough (`accurate`)."""
    return Outcome(
        number / 10, {"points": float(number), "accurate": float(number >= ENOUGH), "answered": float(answered)}
    )


def expected(case: dict[str, Any], told: frozenset[str]) -> float:
    """The expected points of the best final answer when these topics are known."""
    possible = consistent(case, told)
    heeded = 1.0 if "risk" in told else max(RISKS.values())
    return max(fmean(_points(truth, guess, heeded) for truth in possible) for guess in possible)


def _points(truth: Condition, guess: Condition, heeded: float) -> float:
    if truth != guess:
        return float(not truth.urgent)
    return 7 + 3 * heeded
