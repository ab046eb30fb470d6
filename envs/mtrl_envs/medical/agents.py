"""Scripted doctors of `medical`: `expert`, `greedy`, `random` (see `mtrl_envs.scripted.asking`); they know the table."""

from collections.abc import Sequence
from typing import ClassVar

from mtrl_envs.medical.knowledge import CARE, CONDITIONS, RISKS, TOPICS
from mtrl_envs.medical.moves import told
from mtrl_envs.scripted.asking import AskingAgent, Known

QUESTIONS: dict[str, tuple[str, ...]] = {
    "symptom": ("What else do you feel?", "Any other symptoms?"),
    "history": ("How long has it lasted?", "When did it begin?"),
    "risk": ("Any allergies or medicines?", "Are there any risks?"),
}


OTHERS = {
    topic: dict(zip(values, (*values[1:], values[0]), strict=True))
    for topic in ("symptom", "history")
    for values in [sorted({getattr(condition, topic) for condition in CONDITIONS.values()})]
}
"""Another value for each symptom and history."""


class Doctor(AskingAgent):
    """A scripted doctor."""

    topics: ClassVar[tuple[str, ...]] = TOPICS
    turns: ClassVar[int] = 6

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name, f"medical/{seed}")

    def read(self, messages: Sequence[str]) -> Known:
        """The complaint, symptom, history and risk the messages state."""
        return {topic: value for message in messages for topic, value in told(message).items()}

    def question(self, topic: str, known: Known) -> str:
        """A question about a topic."""
        return self.rng.choice(QUESTIONS[topic])

    def answer(self, known: Known) -> str:
        """The condition that matches most known facts, its advice, and a sentence on a known risk."""
        agreeing = {
            name: sum(getattr(condition, topic) == known.get(topic) for topic in ("complaint", "symptom", "history"))
            for name, condition in CONDITIONS.items()
        }
        best = [name for name, agreement in agreeing.items() if agreement == max(agreeing.values())]
        return verdict_of(self.rng.choice(best), known.get("risk", "none"))

    def nonsense(self) -> str:
        """The answer for another patient."""
        return verdict_of(self.rng.choice(list(CONDITIONS)), self.rng.choice(list(RISKS)))


def verdict_of(condition: str, risk: str) -> str:
    """The text of a final answer."""
    words = [f"Diagnosis: {condition}.", CONDITIONS[condition].advice, CARE.get(risk, "")]
    return " ".join(words).strip()
