"""Parsers for the messages of both sides of `document_writing`.

1. `writer_move` parses a response: questions about time, place, tone and length, and the finished document.
2. The document is the text after a heading such as "Final:"; or a whole message that has no question and at least
   `SHORTEST_DOCUMENT` words.
3. `told` parses a user's message: day and hour, place, tone, length.
"""

import re

from mtrl_envs.document_writing.texts import DAYS, EVENTS, KINDS, PLACES, TOPICS
from mtrl_envs.scripted import intents
from mtrl_envs.scripted.intents import phrases
from mtrl_envs.scripted.telling import Move

SHORTEST_DOCUMENT = 8
"""Words that make a message without a heading a document."""

_HEADING = re.compile(
    r"\b(?:(?:final|finished|document|text|draft|invitation|cancellation|notice|here (?:it|you) (?:is|go|are))"
    r"(?: (?:text|version|document|draft))?|here is (?:the|your|my) [a-z ]{1,30})\s*:\s*",
    re.IGNORECASE,
)

ASKS: dict[str, re.Pattern[str]] = {
    "when": phrases(r"(when|date|day|days|time|hour|o'clock|weekday)\b", r"(start|begin)s?\b"),
    "where": phrases(r"(where|place|location|venue|room|address|building|held)\b"),
    "tone": phrases(
        r"(tone|formal|informal|formally|casual|casually|friendly|style|polite|sound|mood|audience|readers?)\b",
        r"(who (is|are|will)|for whom|to whom)\b",
    ),
    "length": phrases(
        r"(long|short|length|brief|shorter|longer|lengthy)\b", r"how (many|much) (words|sentences|text|detail)"
    ),
}
ASK_DETAILS = phrases(
    r"(details?|information|info|facts|wishes|requirements)\b", r"(tell me more|more about|anything else|what else)\b"
)
_HOUR = re.compile(r"\bat (\d{1,2})\b")
_TOLD: dict[str, dict[str, re.Pattern[str]]] = {
    "tone": {
        "formal": phrases(r"(formal|formally|polite)\b"),
        "casual": phrases(r"(casual|casually|informal|relaxed)\b"),
    },
    "length": {"short": phrases(r"(short|brief|shorter)\b"), "long": phrases(r"(long|longer)\b")},
}


def writer_move(message: str) -> Move:
    """Parse a response into its intents."""
    text = intents.clean(message)
    asked = {topic for part in intents.sentences(text) for topic in _asked(part)}
    written = finished(message)
    return Move(
        asks=tuple(topic for topic in TOPICS if topic in asked),
        answer=written,
        greets=intents.says(text, intents.GREETING),
        farewell=intents.says(text, intents.FAREWELL),
        hostile=written is None and intents.says(text, intents.REFUSAL, intents.INSULT),
    )


def _asked(sentence: str) -> set[str]:
    if not intents.is_question(sentence):
        return set()
    found = {topic for topic, pattern in ASKS.items() if intents.says(sentence, pattern)}
    return found or (set(TOPICS) if intents.says(sentence, ASK_DETAILS) else set())


def finished(message: str) -> str | None:
    """The document of a response, single-spaced; None if there is none."""
    text = " ".join(message[: intents.LIMIT].encode("utf-8", "replace").decode().split())
    heading = _HEADING.search(text)
    if heading is not None:
        return text[heading.end() :] or None
    return text if "?" not in text and len(text.split()) >= SHORTEST_DOCUMENT else None


def told(message: str) -> dict[str, str | int]:
    """The facts of a user's message: kind, event, day, hour, place, tone, length; a later statement corrects an earlier one."""
    text = intents.clean(message)
    facts: dict[str, str | int] = {}
    for key, candidates in (("day", DAYS), ("place", PLACES), ("event", EVENTS)):
        named = intents.name_spans(text, candidates)
        facts |= {key: named[-1][1]} if named else {}
    hours = _HOUR.findall(text)
    facts |= {"hour": int(hours[-1])} if hours else {}
    for key, values in {**_TOLD, "kind": KINDS}.items():
        found = [(match.start(), value) for value, pattern in values.items() for match in pattern.finditer(text)]
        facts |= {key: max(found)[1]} if found else {}
    return facts
