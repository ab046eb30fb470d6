"""Rule-based parsing of free text: prices, names, questions about a topic, and stock phrases.

1. Text is parsed after `clean`: at most `LIMIT` characters, one Unicode form, lower case, single spaces. The parsing time
   is bounded for every text.
2. `prices` gives amounts in dollars ("$300", "300 dollars", "38k", "38,000", "38 grand"). A bare number counts from
   100 on, unless it is a year or has another unit.
3. `names` finds known names in any case, with a possessive or plural ending, or with one typo in longer words.
4. `asks_about` distinguishes a question or request about a topic from a statement about it.
5. A topic or stock phrase is a compiled pattern from `phrases`, which backtracks over a few words at most.
"""

import re
import unicodedata
from collections.abc import Iterable

LIMIT = 2000
"""Characters of a message that are parsed; the rest is ignored."""

FUZZY_LENGTH = 6
"""Minimum letters of a word that matches a name with one typo."""

_QUOTES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": " - "})
_SENTENCE = re.compile(r"(?<=[.?!])\s+")
_WORD = re.compile(r"[a-z]+")
_PRICE = re.compile(
    r"(?P<sign>[$€£]\s?)?(?<![\w.,])(?P<number>\d{1,3}(?:,\d{3}){1,3}|\d{1,9})(?P<decimals>\.\d{1,4})?(?![\d])"
    r"(?:\s?(?P<unit>k|grand|thousand)\b)?(?:\s?(?P<word>dollars?|bucks|usd|euros?)\b)?"
)
_OTHER_UNIT = re.compile(
    r"\s?(%|percent|days?\b|weeks?\b|months?\b|years?\b|hours?\b|miles?\b|km\b|gb\b|tb\b|hp\b|mm\b|mp\b|inch|horsepower"
    r"|customers|people|stars|points|words|options|models|mph|megapixel)"
)
_QUESTION = re.compile(
    r"\?|^\W*(what|which|how|who|when|where|why|do|does|are|is|can|could|would|will|may|any|have)\b"
    r"|\b(tell me|let me know|like to know|may i ask|please share|share your|curious|wonder|want to know|need to know"
    r"|describe|specify|talk about|give me an idea)\b"
)


def phrases(*alternatives: str) -> re.Pattern[str]:
    """A pattern that matches any of the alternatives (regular expressions) at the start of a word."""
    return re.compile(r"\b(?:" + "|".join(alternatives) + r")")


GREETING = phrases(
    r"hello\b", r"hi\b", r"hey\b", r"welcome\b", r"good (morning|afternoon|evening|day)\b", r"nice to meet"
)
FAREWELL = phrases(r"(good)?bye\b", r"see you\b", r"farewell\b", r"have a (nice|good|great) day")
REFUSAL = phrases(
    r"(can't|cannot|can not|won't|unable to) (help|assist|sell|do that|comply)",
    r"i('m| am) sorry,? (but )?i (can't|cannot|won't)",
    r"go away\b",
    r"not interested\b",
    r"no deal\b",
    r"stop (talking|wasting)",
)
INSULT = phrases(r"(stupid|idiot|moron|shut up|dumb|loser|hate you|fool)\b")
CLOSING = phrases(
    r"(place|complete|confirm|finali[sz]e) (the|your|an|this) order",
    r"order (it|one|now|this|that)\b",
    r"ready to (buy|order|purchase|go ahead)",
    r"(want|like|wish) to (buy|order|purchase|take) (it|one|this|that)\b",
    r"(shall|should|can|may) (i|we) (order|ring|wrap|book|reserve|pack)",
    r"go ahead\b",
    r"check ?out\b",
    r"proceed\b",
    r"(wrap|ring|pack) it up\b",
    r"will you take it\b",
)


def clean(text: str) -> str:
    """Normalise a message for parsing (rule 1)."""
    normal = unicodedata.normalize("NFKC", text[:LIMIT]).translate(_QUOTES)[:LIMIT]
    return " ".join(normal.lower().split())


def sentences(text: str) -> list[str]:
    """The sentences of cleaned text, each with its final punctuation."""
    return [part for part in _SENTENCE.split(text) if part]


def price_spans(text: str) -> list[tuple[int, float]]:
    """(position, dollars) of each price in cleaned text, in order."""
    found = []
    for match in _PRICE.finditer(text):
        amount = float(match["number"].replace(",", "") + (match["decimals"] or ""))
        marked = any(match[group] for group in ("sign", "unit", "word")) or "," in match["number"]
        if match["unit"]:
            amount *= 1000
        year = 1990 <= amount <= 2035
        if marked or (amount >= 100 and not year and not _OTHER_UNIT.match(text, match.end())):
            found.append((match.start(), amount))
    return found


def prices(text: str) -> list[float]:
    """The prices named in cleaned text, in dollars, in order."""
    return [amount for _, amount in price_spans(text)]


def name_spans(text: str, candidates: Iterable[str]) -> list[tuple[int, str]]:
    """(position, candidate) of each one-word name in cleaned text, in order."""
    known = {candidate.lower(): candidate for candidate in candidates}
    found = []
    for match in _WORD.finditer(text):
        name = _resolve(match.group(), known)
        if name is not None:
            found.append((match.start(), name))
    return found


def names(text: str, candidates: Iterable[str]) -> list[str]:
    """The candidates named in cleaned text, each once, in order of first mention."""
    return list(dict.fromkeys(name for _, name in name_spans(text, candidates)))


def asks_about(text: str, topic: re.Pattern[str]) -> bool:
    """Whether a sentence of cleaned text is a question or request about the topic."""
    return any(is_question(sentence) and topic.search(sentence) for sentence in sentences(text))


def is_question(sentence: str) -> bool:
    """Whether one cleaned sentence asks for something."""
    return _QUESTION.search(sentence) is not None


def says(text: str, *patterns: re.Pattern[str]) -> bool:
    """Whether cleaned text contains any of the phrases."""
    return any(pattern.search(text) for pattern in patterns)


def template_markers(text: str) -> bool:
    """Whether text has chat-template markup, or imitates the note about the message that was sent instead."""
    return re.search(r"<\||\|>|</?s>|\[/?INST\]|<(start|end)_of_turn>|\(sent:", text[:LIMIT], re.IGNORECASE) is not None


def _resolve(word: str, known: dict[str, str]) -> str | None:
    for form in (word, word.removesuffix("s")):
        if form in known:
            return known[form]
    if len(word) < FUZZY_LENGTH - 1:
        return None
    for name, candidate in known.items():
        if len(name) >= FUZZY_LENGTH and one_error(word, name):
            return candidate
    return None


def one_error(word: str, name: str) -> bool:
    """Whether two words share their first letter and differ by one insertion, deletion, substitution or transposition."""
    if word[:1] != name[:1] or abs(len(word) - len(name)) > 1:
        return False
    at = next((i for i, (a, b) in enumerate(zip(word, name, strict=False)) if a != b), min(len(word), len(name)))
    rest, other = word[at:], name[at:]
    swapped = rest[:2] == other[:2][::-1] and rest[2:] == other[2:]
    return rest[1:] == other[1:] or rest == other[1:] or rest[1:] == other or swapped
