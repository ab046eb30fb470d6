"""Parsers for the messages of both sides of `math_tutoring`.

1. `tutor_move` parses a response. The topic of a question depends on the story: "how much" asks for a price, "how fast" for
   a speed. A question that has no topic but asks for numbers or details asks for the first missing number.
2. A final answer is a number after "answer", "result", "solution" or "total" in a statement (after its last equals sign if
   there is one); or, in a message without a question, its last number. Numbers up to twenty may be words.
3. `told` parses a user's message: the numbers and the wish.
"""

import re

from mtrl_envs.math_tutoring.problems import FAMILIES, TOPICS, Family
from mtrl_envs.scripted import intents
from mtrl_envs.scripted.intents import phrases
from mtrl_envs.scripted.telling import Move

_WORDS = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty",
)
_WORD_NUMBER = re.compile(r"\b(" + "|".join(_WORDS) + r")\b")
_NUMBER = re.compile(r"(?<![\w.,])-?\d{1,9}(?:,\d{3})*(?:\.\d{1,6})?(?![\w])")
_FINAL = phrases(r"answer\b", r"results?\b", r"solution\b", r"total\b", r"in all\b", r"altogether\b")

ASK_WISH = phrases(
    r"(exact|exactly|round|rounded|rounding|precise|precisely|double|doubled|twice|decimals?|format|wish|wishes|unit|units)\b",
    r"(want|like|need|prefer|give|have|present|form)\b[^?]{0,20}\b(answer|result|number)\b",
    r"(answer|result)\b[^?]{0,20}\b(be|look|want|prefer|need)\b",
)
ASK_NUMBERS = phrases(
    r"(numbers?|details?|information|info|figures|values?|facts|data|given|amounts?)\b",
    r"(tell me more|more about|what (else )?do (you|we|i) know)\b",
)
_WISHES = {
    "rounded": phrases(r"round(ed)?\b"),
    "doubled": phrases(r"doubled?\b", r"twice\b"),
    "exact": phrases(r"exact(ly)?\b"),
}


def tutor_move(message: str, family: Family | None) -> Move:
    """Parse a response into its intents. `family` is the family of the story; None accepts any."""
    text = intents.clean(message)
    families = list(FAMILIES.values()) if family is None else [family]
    asked = {topic for part in intents.sentences(text) for topic in _asked(part, families)}
    return Move(
        asks=tuple(topic for topic in TOPICS if topic in asked),
        answer=final_answer(text),
        greets=intents.says(text, intents.GREETING),
        farewell=intents.says(text, intents.FAREWELL),
        hostile=intents.says(text, intents.REFUSAL, intents.INSULT),
    )


def _asked(sentence: str, families: list[Family]) -> set[str]:
    if not intents.is_question(sentence):
        return set()
    if intents.says(sentence, ASK_WISH):
        return {"wish"}
    found = {
        topic for family in families for topic in ("first", "second") if intents.says(sentence, family.asks[topic])
    }
    if not found and intents.says(sentence, ASK_NUMBERS):
        return {"first", "second"}
    return found


def final_answer(text: str) -> str | None:
    """The final answer in cleaned text, as written there; None if there is none."""
    parts = intents.sentences(_WORD_NUMBER.sub(lambda word: str(_WORDS.index(word[1])), text))
    stated = [part for part in parts if "?" not in part]
    for part in reversed(stated):
        keyword = next(reversed(list(_FINAL.finditer(part))), None)
        if keyword is not None:
            behind = part[keyword.end() :]
            found = _NUMBER.search(behind[behind.rfind("=") + 1 :])
            if found is not None:
                return found.group()
    everywhere = [found for part in stated for found in _NUMBER.findall(part)]
    return everywhere[-1] if everywhere and len(stated) == len(parts) else None


def as_number(answer: str) -> float | None:
    """The value of a final answer; None for an empty one."""
    return float(answer.replace(",", "")) if answer else None


def told(message: str, family: Family) -> dict[str, int | str]:
    """The facts of a user's message, by topic; a later statement corrects an earlier one."""
    text = intents.clean(message)
    facts: dict[str, int | str] = {}
    for topic, pattern in family.tells.items():
        numbers = [int(group) for match in pattern.finditer(text) for group in match.groups() if group]
        if numbers:
            facts[topic] = numbers[-1]
    wishes = [(match.start(), wish) for wish, pattern in _WISHES.items() for match in pattern.finditer(text)]
    return {**facts, "wish": max(wishes)[1]} if wishes else facts


def family_of(request: str) -> Family | None:
    """The family of the story in a user's first message."""
    words = set(re.findall(r"[a-z]+", intents.clean(request)))
    return next((family for family in FAMILIES.values() if words & set(family.things)), None)
