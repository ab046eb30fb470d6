"""The topics of `education`, and parsers for the messages of teacher and student.

1. A topic has four aspects, single words. A presentation has one of four styles, of which a student prefers one.
2. `teacher_move` parses a teacher's message, `student_signs` a student's. Both accept free text: an aspect that
   is not in the table counts by its words, and a statement without a style is direct.
3. Results are cached, because agents, students and the judge parse the same messages repeatedly.
4. `content` gives the content words of a message; an answer is taken up if one of them recurs.
"""

import functools
import re
from dataclasses import dataclass

from mtrl_envs.scripted import intents
from mtrl_envs.scripted.intents import phrases

TOPICS: dict[str, tuple[str, str, str, str]] = {
    "volcanoes": ("magma", "ash", "crater", "heat"),
    "planets": ("gravity", "orbit", "moon", "rings"),
    "plants": ("roots", "leaves", "sunlight", "seeds"),
    "weather": ("clouds", "wind", "pressure", "storm"),
    "magnets": ("poles", "iron", "field", "compass"),
    "music": ("rhythm", "melody", "notes", "tempo"),
    "Rome": ("roads", "laws", "legions", "baths"),
    "oceans": ("tides", "waves", "salt", "reefs"),
}
"""Aspects of each topic."""

ASPECTS = tuple(aspect for aspects in TOPICS.values() for aspect in aspects)
TOPIC_OF = {aspect: topic for topic, aspects in TOPICS.items() for aspect in aspects}

STYLES: dict[str, re.Pattern[str]] = {
    "interactive": phrases(
        r"(discuss\w*|debate|dialogue|conversations?|chat|quiz|interactiv\w*)\b",
        r"talk(ing)? (\w+ )?(over|about|through)\b",
        r"(back and forth|together with you|exchange ideas)\b",
    ),
    "direct": phrases(
        r"(facts?|definitions?|direct(ly)?|lectures?|explain\w*|explanations?|step by step|in short|clear words)\b"
    ),
    "hands-on": phrases(
        r"(hands?|hands-on|build\w*|experiments?|touch|practi[cs]e|practical|try (it|this|out)|workshop|models? of)\b",
        r"try\w* things\b",
    ),
    "creative": phrases(
        r"(imagin\w*|stor(y|ies)|draw\w*|pictures?|paint\w*|songs?|poems?|pretend|invent\w*|creativ\w*|role-?play)\b"
    ),
}
"""Patterns of a presentation in each style, or of the wish for it."""

_ASK_STYLE = phrases(
    r"how (do|would|can|should|did) (you|we|i) (like|love|prefer|want|best|learn|teach|study|wish)[^?]*",
    r"(helps?|way|style|kind of lessons?)\b[^?]{0,30}\b(you|learn\w*|lessons?)\b",
    r"(like|love|prefer|want) to (learn|study|work|be taught)\b",
    r"learn best\b",
)
_CHALLENGE = phrases(
    r"(challeng\w*|harder|tougher|tricky|difficult) ?(one|question|task|problem|puzzle|for you|about)?",
    r"(puzzle|riddle|next level|push yourself|stretch yourself)\b",
)
_COMFORT = phrases(
    r"(do not|don't|no need to|never) (worry|panic|be (afraid|nervous|sad|upset|scared)|give up)",
    r"take your time\b",
    r"(you can|you will|you'll) (do (it|this)|make it|get (it|there))\b",
    r"(it is|it's|that is|that's|this is) (ok|okay|fine|all right|alright|normal)\b",
    r"(no (problem|pressure|rush)|mistakes are|understandable|i understand how|slow down|go slow\w*|i am here for you)",
    r"i believe in you\b",
)
_PRAISE = phrases(
    r"(great|wonderful|exciting|excited|amazing|fantastic|awesome|brilliant|fascinating|love this|fun|thrilling|superb)\b"
)
_UPTAKE = phrases(
    r"(yes|right|exactly|indeed|correct|well (said|done)|good (point|thought|idea|answer)|you (say|said|named|mentioned))\b",
    r"(nice|clever|smart) (point|thought|idea|answer)\b",
    r"(your (answer|idea|thought)|as you say|not quite|almost|close)\b",
)

_DISTRESS = phrases(
    r"(i am|i'm|i feel|feeling|so|too) (lost|afraid|scared|nervous|anxious|worried|stressed|frustrated|confused|overwhelmed)",
    r"(do not|don't|cannot|can't|never) (get|understand|follow|do) (it|this|that|any|anything)\b",
    r"(too hard|will fail|hopeless|give up|overwhelming|makes no sense|frustrating|confusing)\b",
)
_BORED = phrases(
    r"(boring|bored|whatever|so what|who cares|pointless|dull|yawn|annoying|waste of time|zzz)\b", r"(hm+|meh)\b"
)
_PLEASED = phrases(
    r"(i )?(like|love|enjoy) (that|this|it)\b(?! way)",
    r"(that|this|it) (is|was|sounds) (\w+ )?(fun|nice|cool|great|exciting|lovely|awesome)\b",
    r"more (of that|of this|like that|please)\b",
)
_WISH = phrases(
    r"(i|i'd|we) (would |really |do |'d )?(like|love|prefer|want|rather|enjoy|learn|need|wish)\b",
    r"(rather|please|just|could we|can we|can you)\b",
)
_NO_ANSWER = phrases(
    r"(no idea|not sure|don't know|do not know|dunno|cannot say|can't say|what do you mean|not yet|not follow|skip)\b",
    r"(whatever|who cares|so what)\b",
)
_NO_CONTENT = frozenset(
    re.findall(
        r"\w+",
        "the and but for not you your yours are was were has have had how what when where which who why can could "
        "would should will with about from into that this these those there here then than them they their its his "
        "her our out all any some more most just very much many also because think thought maybe perhaps guess know "
        "say said tell let get got make made does did like want need see look one two good great nice right yes well "
        "okay fine thing things way lot too now please thanks thank hello really only even still been being over "
        "under again other same such may might must shall part parts",
    )
)
_WORD = re.compile(r"[a-z]{3,}")
LONG_STATEMENT = 6
"""Minimum words of a statement without an aspect of the table that still presents something."""


@dataclass(frozen=True)
class TeacherMove:
    """A parsed teacher's message; `style` and `aspects` (of the table) of its presentation, `words`: content words."""

    style: str | None = None
    aspects: tuple[str, ...] = ()
    asks: bool = False
    asks_style: bool = False
    challenges: bool = False
    comforts: bool = False
    praises: bool = False
    takes_up: bool = False
    greets: bool = False
    hostile: bool = False
    words: frozenset[str] = frozenset()

    @property
    def presents(self) -> bool:
        """Whether the message presents something."""
        return self.style is not None

    @property
    def understood(self) -> bool:
        """Whether the message has at least one intent."""
        return (
            self.presents
            or self.asks
            or self.asks_style
            or self.challenges
            or self.comforts
            or self.praises
            or self.takes_up
            or self.greets
            or self.hostile
        )


@dataclass(frozen=True)
class StudentSigns:
    """A parsed student's message; `told`: the style it wishes for, `words`: content words of an answer (empty: no answer)."""

    distressed: bool = False
    bored: bool = False
    pleased: bool = False
    told: str | None = None
    words: frozenset[str] = frozenset()


def teacher_move(message: str) -> TeacherMove:
    """Parse a teacher's message into its intents."""
    return _teacher_move(intents.clean(message))


@functools.lru_cache(maxsize=4096)
def _teacher_move(text: str) -> TeacherMove:
    parts = intents.sentences(text)
    asks_style = [part for part in parts if intents.is_question(part) and intents.says(part, _ASK_STYLE)]
    others = [part for part in parts if part not in asks_style]
    challenges = intents.says(text, _CHALLENGE)
    return TeacherMove(
        style=_presented(others),
        aspects=tuple(intents.names(text, ASPECTS)),
        asks=not challenges and any(_is_question(part) for part in others),
        asks_style=bool(asks_style),
        challenges=challenges,
        comforts=intents.says(text, _COMFORT),
        praises=intents.says(text, _PRAISE),
        takes_up=intents.says(text, _UPTAKE),
        greets=intents.says(text, intents.GREETING),
        hostile=intents.says(text, intents.REFUSAL, intents.INSULT),
        words=content(text),
    )


def student_signs(message: str) -> StudentSigns:
    """Parse a student's message."""
    return _student_signs(intents.clean(message))


@functools.lru_cache(maxsize=4096)
def _student_signs(text: str) -> StudentSigns:
    distressed = intents.says(text, _DISTRESS)
    bored = intents.says(text, _BORED)
    told = first_style(text) if intents.says(text, _WISH) else None
    silent = distressed or bored or told is not None or intents.says(text, _NO_ANSWER)
    return StudentSigns(
        distressed=distressed,
        bored=bored,
        pleased=intents.says(text, _PLEASED) and not bored,
        told=told,
        words=frozenset() if silent else content(text),
    )


def content(text: str) -> frozenset[str]:
    """The content words of cleaned text; plurals count as their singular."""
    return frozenset(word.removesuffix("s") for word in _WORD.findall(text) if word not in _NO_CONTENT)


def first_style(text: str) -> str | None:
    """The style that cleaned text names first."""
    found = [(match.start(), style) for style, pattern in STYLES.items() if (match := pattern.search(text))]
    return min(found)[1] if found else None


def _is_question(part: str) -> bool:
    """Whether a sentence is a question about the subject; an invitation ("let us talk about it") or comfort is not."""
    asks = intents.is_question(part) and first_style(part) is None and not intents.says(part, _COMFORT)
    return "?" in part or asks


def _presented(parts: list[str]) -> str | None:
    """The style of the sentences' presentation; None if there is none. A request for an explanation is no presentation."""
    subject = [part for part in parts if not intents.says(part, _CHALLENGE)]
    for part in subject:
        style = first_style(part)
        if style is not None and not (style == "direct" and _is_question(part)) and len(content(part)) > 1:
            return style
    told = [part for part in subject if not _is_question(part) and not intents.says(part, _UPTAKE, _COMFORT)]
    substance = [part for part in told if intents.names(part, ASPECTS) or len(part.split()) >= LONG_STATEMENT]
    return "direct" if substance else None
