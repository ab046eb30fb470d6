"""The user of `document_writing`: has a target document in mind; tells its time, place, tone and length if asked."""

from typing import Any

from mtrl_envs.base import Outcome
from mtrl_envs.document_writing.moves import writer_move
from mtrl_envs.document_writing.texts import LENGTHS, TONES, attainable, bleu, document, sample_facts
from mtrl_envs.scripted.telling import Move, TellingUser

REQUESTS: dict[str, tuple[str, ...]] = {
    "invitation": ("I need an invitation to our {event}.", "Write an invitation for the {event}."),
    "cancellation": ("I have to cancel our {event}.", "Write that the {event} is cancelled."),
}
SAYINGS: dict[str, tuple[str, ...]] = {
    "when": ("On {day} at {hour}.", "It is {day} at {hour}."),
    "where": ("In the {place}.", "At the {place}."),
    "formal": ("Formal, please.", "It should be formal."),
    "casual": ("Keep it casual.", "Casual is fine."),
    "short": ("Short, please.", "Keep it short."),
    "long": ("Rather long.", "It should be long."),
}


class Client(TellingUser):
    """A scripted client. `order`: kind, event, day, hour, place, tone, length, told, patience."""

    def __init__(self, key: str, order: dict[str, Any], noise: float) -> None:
        super().__init__(key, order["told"], order["patience"], noise)
        self._order = order
        self._target = document(order["kind"], order["event"], order)

    def request(self) -> str:
        """A sentence with kind and event."""
        return self.rng.choice(REQUESTS[self._order["kind"]]).format(event=self._order["event"])

    def read(self, response: str) -> Move:
        """Parse a response into its intents."""
        return writer_move(response)

    def tell(self, topic: str) -> str:
        """A sentence on time, place, tone or length."""
        return self._state(topic, self._order)

    def mistake(self, topic: str) -> str:
        """A sentence with a wrong time or place, or the other tone or length."""
        if topic in ("tone", "length"):
            other = next(
                value for value in (*TONES, *LENGTHS)[2 * (topic == "length") :] if value != self._order[topic]
            )
            return self._state(topic, {topic: other})
        keys = ("day", "hour") if topic == "when" else ("place",)
        while all(self._order[key] == (other_facts := sample_facts(self.rng))[key] for key in keys):
            pass
        return self._state(topic, other_facts)

    def grade(self, answer: str) -> Outcome:
        """Word-level BLEU against the target."""
        score = bleu(answer, self._target) if answer else 0.0
        return Outcome(score, {"bleu": 100 * score, "answered": float(bool(answer))})

    def attainable(self, told: frozenset[str]) -> float:
        """The expected BLEU of the best document."""
        return attainable(self._order["kind"], self._order["tone"], self._order["length"], told)

    def _state(self, topic: str, facts: dict[str, Any]) -> str:
        saying = facts[topic] if topic in ("tone", "length") else topic
        return self.rng.choice(SAYINGS[saying]).format(**facts)
