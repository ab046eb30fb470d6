"""Parsers for the messages of both sides of `medical`.

1. `doctor_move` parses a response: questions about symptoms, history and risks, and the final answer.
2. A final answer states a diagnosis: after "Diagnosis:", or a condition of the table in a message without a question.
   `verdict` parses it; an answer that names two conditions has no diagnosis.
3. `told` parses a patient's message: complaint, symptom, history, risk.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mtrl_envs.medical.knowledge import CONDITIONS, HEEDS, TOLD, TOPICS
from mtrl_envs.scripted import intents
from mtrl_envs.scripted.intents import phrases
from mtrl_envs.scripted.telling import Move

ASKS: dict[str, re.Pattern[str]] = {
    "symptom": phrases(
        r"(symptoms?|complaints?|signs?)\b",
        r"(anything|what) else\b",
        r"other (problems?|pains?|trouble|discomfort)\b",
        r"(feel|feels|feeling|notice|noticed|describe|where)\b",
        r"what (is|kind of pain|does) (it|the pain|that)\b",
    ),
    "history": phrases(
        r"(how long|since when|when did|when was|how often|first time|how did)\b",
        r"(begin|began|start|started|starting|last|lasted|history|before|duration|come and go|suddenly)\b",
    ),
    "risk": phrases(
        r"(allerg|medicines?\b|medications?\b|pregnan|pills?\b|drugs?\b|tablets?\b|thinners?\b|chronic|illness|diseases?\b)",
        r"(risks?|smoke|smoking|conditions?|surgery|operations?)\b",
        r"(take|taking|careful) (any|about|with|of)\b",
    ),
}
_HEADING = phrases(r"diagnos(is|ed)\b")


@dataclass(frozen=True)
class Verdict:
    """A parsed final answer: the one condition it names, the conditions its advice is for, the risks it accounts for."""

    diagnosis: str | None
    advised: frozenset[str]
    heeded: frozenset[str]


def doctor_move(message: str, diseases: Iterable[re.Pattern[str]] = ()) -> Move:
    """Parse a response. `diseases`: further patterns of names that make a statement a diagnosis."""
    text = intents.clean(message)
    parts = intents.sentences(text)
    asked = {topic for part in parts for topic in _asked(part)}
    return Move(
        asks=tuple(topic for topic in TOPICS if topic in asked),
        answer=text if _is_final(parts, diseases) else None,
        greets=intents.says(text, intents.GREETING),
        farewell=intents.says(text, intents.FAREWELL),
        hostile=intents.says(text, intents.REFUSAL, intents.INSULT),
    )


def _asked(sentence: str) -> set[str]:
    if not intents.is_question(sentence):
        return set()
    found = {topic for topic, pattern in ASKS.items() if intents.says(sentence, pattern)}
    return found - {"symptom"} if "risk" in found else found


def _is_final(parts: list[str], diseases: Iterable[re.Pattern[str]]) -> bool:
    stated = [part for part in parts if "?" not in part]
    if any(intents.says(part, _HEADING) for part in stated):
        return True
    known = [condition.names for condition in CONDITIONS.values()]
    named = any(intents.says(part, *known, *diseases) for part in stated)
    return named and not any(intents.is_question(part) for part in parts)


def verdict(answer: str) -> Verdict:
    """Parse a final answer."""
    text = intents.clean(answer)
    named = [name for name, condition in CONDITIONS.items() if condition.names.search(text)]
    return Verdict(
        diagnosis=named[0] if len(named) == 1 else None,
        advised=frozenset(name for name, condition in CONDITIONS.items() if condition.advised.search(text)),
        heeded=frozenset(risk for risk, pattern in HEEDS.items() if pattern.search(text)),
    )


def told(message: str) -> dict[str, str]:
    """The facts of a patient's message, by topic; a later statement corrects an earlier one."""
    text = intents.clean(message)
    facts = {}
    for topic, values in TOLD.items():
        found = [(match.start(), value) for value, pattern in values.items() for match in pattern.finditer(text)]
        if found:
            facts[topic] = max(found)[1]
    return facts
