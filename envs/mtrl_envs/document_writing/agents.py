"""Scripted writers of `document_writing`: `expert`, `greedy`, `random` (see `scripted.asking`); they know the templates."""

from collections.abc import Sequence
from typing import Any, ClassVar

from mtrl_envs.document_writing.moves import told
from mtrl_envs.document_writing.texts import EVENTS, KINDS, TOPICS, document, sample_facts, sample_order
from mtrl_envs.scripted.asking import AskingAgent, Known

QUESTIONS: dict[str, tuple[str, ...]] = {
    "when": ("When is the {event}?", "What day and time?"),
    "where": ("Where is the {event}?", "At what place?"),
    "tone": ("Formal or casual?", "What tone do you want?"),
    "length": ("Short or long?", "How long should it be?"),
}
HEADING = "Final: "
USUAL = {"day": "Saturday", "hour": 5, "place": "garden"}
"""Defaults for an unknown time or place."""


OTHERS = {"tone": {"formal": "casual", "casual": "formal"}}
"""The other tone of each."""


class Writer(AskingAgent):
    """A scripted writer."""

    topics: ClassVar[tuple[str, ...]] = TOPICS
    turns: ClassVar[int] = 5

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name, f"document_writing/{seed}")

    def read(self, messages: Sequence[str]) -> Known:
        """Kind and event of the request, and the known time, place, tone and length."""
        facts: dict[str, Any] = {}
        for message in messages:
            facts |= told(message)
        facts |= {"when": True} if {"day", "hour"} <= set(facts) else {}
        return facts | ({"where": True} if "place" in facts else {})

    def question(self, topic: str, known: Known) -> str:
        """A question about a topic."""
        return self.rng.choice(QUESTIONS[topic]).format(event=known.get("event", "event"))

    def answer(self, known: Known) -> str:
        """The document; unknown tone and length are random, unknown facts are the defaults."""
        facts = sample_facts(self.rng) | USUAL | dict(known)
        kind = facts.get("kind") or self.rng.choice(list(KINDS))
        return HEADING + document(kind, facts.get("event") or self.rng.choice(list(EVENTS)), facts)

    def nonsense(self) -> str:
        """Another document."""
        order = sample_order(self.rng)
        return HEADING + document(order["kind"], order["event"], order)
