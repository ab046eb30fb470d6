"""The documents of `document_writing`: two kinds, two tones, two lengths, and the facts that go into them.

1. A target document is a template, chosen by kind, tone and length, with the event, the time and the place filled in.
2. The templates share few phrases: a wrong tone or length scores low even if the facts are right.
3. The score of a text is its word-level BLEU against the target, by sacrebleu (13a tokens, up to four words in a row,
   effective order for short texts), as a share of 1.
"""

import functools
import random
import re

from sacrebleu.metrics import BLEU

from mtrl_envs.scripted.intents import phrases
from mtrl_envs.scripted.splits import Profile

TOPICS = ("when", "where", "tone", "length")
"""Topics that the agent can ask about; the request states the kind and the event."""

EVENTS: dict[str, int] = {"party": 6, "concert": 4, "picnic": 3, "dinner": 2, "workshop": 2, "meeting": 1}
"""Events and their weights: a small model distinguishes events more easily if their frequencies differ."""
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HOURS = range(2, 10)
PLACES = ("library", "garden", "museum", "school", "cafe", "gym")
TONES = ("formal", "casual")
LENGTHS = ("short", "long")

KINDS: dict[str, re.Pattern[str]] = {
    "invitation": phrases(r"invit"),
    "cancellation": phrases(r"cancel", r"called off\b"),
}
"""Patterns of the kinds of document."""

TEMPLATES: dict[tuple[str, str, str], str] = {
    ("invitation", "formal", "short"): (
        "Dear guests, you are invited to our {event} on {day} at {hour} in the {place}. Kind regards."
    ),
    ("invitation", "formal", "long"): (
        "Dear guests, it is a pleasure to welcome you. The {event} will be held this {day}, from {hour} onwards, near the "
        "{place}. We look forward to your reply. Kind regards."
    ),
    ("invitation", "casual", "short"): "Hi all, {event} time! Be there {day}, {hour} sharp, same {place}. See you!",
    ("invitation", "casual", "long"): (
        "Hi all, guess what, a {event} is coming! It starts next {day} by {hour}, just go to the old {place}. Bring snacks "
        "and friends, it will be fun. See you!"
    ),
    ("cancellation", "formal", "short"): (
        "Dear friends, we regret that no {event} takes place on {day} at {hour} in the {place}. With apologies."
    ),
    ("cancellation", "formal", "long"): (
        "Dear friends, this is to inform you of a change. Owing to illness, the {event} of {day} cannot begin at {hour}, and "
        "the {place} stays closed. Tickets remain valid. With apologies."
    ),
    ("cancellation", "casual", "short"): "Hello folks, no {event} this {day}! Forget {hour}, skip the {place}. Sorry!",
    ("cancellation", "casual", "long"): (
        "Hello folks, I hate to say it, but the {event} is off. Do not come {day}, nobody will be there by {hour} and the "
        "{place} is locked. We try again soon. Sorry!"
    ),
}

_METRIC = BLEU(tokenize="13a", effective_order=True)


@functools.lru_cache(maxsize=65536)
def bleu(text: str, target: str) -> float:
    """Word-level BLEU of a text against its target, in [0, 1] (sacrebleu's sentence score / 100)."""
    return min(1.0, _METRIC.sentence_score(text, [target]).score / 100)


def document(kind: str, event: str, facts: Profile) -> str:
    """The target document of a kind and an event; `facts`: tone, length, day, hour, place."""
    template = TEMPLATES[kind, facts["tone"], facts["length"]]
    return template.format(event=event, day=facts["day"], hour=facts["hour"], place=facts["place"])


@functools.cache
def attainable(kind: str, tone: str, length: str, told: frozenset[str]) -> float:
    """The expected BLEU of the best text for known topics, given a target of this kind, tone and length.

    Unknown tone and length are guessed; an unknown time or place is a word that is not in the target.
    """
    facts = {"day": "Monday", "hour": "five", "place": "library"}
    target = document(kind, "event", {"tone": tone, "length": length, **facts})
    known = {**facts}
    known |= {} if "when" in told else {"day": "Oneday", "hour": "once"}
    known |= {} if "where" in told else {"place": "somewhere"}
    guesses = [
        {"tone": guessed_tone, "length": guessed_length}
        for guessed_tone in ([tone] if "tone" in told else TONES)
        for guessed_length in ([length] if "length" in told else LENGTHS)
    ]
    return sum(bleu(document(kind, "event", {**known, **guess}), target) for guess in guesses) / len(guesses)


def sample_facts(rng: random.Random) -> Profile:
    """Random facts of a document: tone, length, day, hour (o'clock), place."""
    return {
        "tone": rng.choice(TONES),
        "length": rng.choice(LENGTHS),
        "day": rng.choice(DAYS),
        "hour": rng.choice(HOURS),
        "place": rng.choice(PLACES),
    }


def sample_order(rng: random.Random) -> Profile:
    """A random target document: kind, event and facts."""
    return {
        "kind": rng.choice(list(KINDS)),
        "event": rng.choices(list(EVENTS), weights=list(EVENTS.values()))[0],
        **sample_facts(rng),
    }
