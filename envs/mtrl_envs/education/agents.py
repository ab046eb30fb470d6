"""Scripted teachers of `education`: they see what the policy sees and draw their phrasings from a seed.

1. `expert` asks how the student likes to learn, then presents in that style, asks, takes up every answer, challenges, and
   comforts a distressed student. It does not use the hidden part of the context.
2. `greedy` maximises the quality of the lesson as if it ended now: it comforts a distressed student and gives a new
   presentation with enthusiasm. It never asks, because a question counts only after its answer is taken up.
3. `random` makes a random move, sometimes about another topic.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from mtrl_envs.base import Probe
from mtrl_envs.education.moves import ASPECTS, STYLES, TOPICS, student_signs, teacher_move
from mtrl_envs.scripted import intents
from mtrl_ray.dialogue.conversation import Role

PRESENT: dict[str, tuple[str, ...]] = {
    "interactive": ("Let us discuss the {aspect}.", "We talk about the {aspect} together."),
    "direct": ("Here are the facts on the {aspect}.", "In short, the {aspect} matters most."),
    "hands-on": ("Try it: build the {aspect}.", "We do an experiment with the {aspect}."),
    "creative": ("Imagine you are the {aspect}.", "Here is a story of the {aspect}."),
}
PRAISE = ("Great!", "This is exciting!", "I love this!")
ASK = ("What do you know of the {aspect}?", "Why does the {aspect} matter?", "What comes next?")
ASK_STYLE = ("How do you like to learn?", "What way of learning do you like?")
CHALLENGE = ("Here is a challenge: what moves the {aspect}?", "A harder one: what if we lose the {aspect}?")
COMFORT = ("Do not worry, you can do it.", "Take your time, it is fine.")
TAKE_UP = ("Yes, {aspect}.", "Right, {aspect}.", "Indeed, {aspect}.")
GREET = ("Hello, nice to meet you.", "Hi, welcome.")
"""Phrasings of each move."""

CHALLENGES = 2
"""Challenges that the expert gives; more add little."""


@dataclass
class Known:
    """What is known of the student and the lesson from the history."""

    topic: str = "plants"
    style: str | None = None
    excluded: set[str] = field(default_factory=set)
    presented: list[str] = field(default_factory=list)
    distressed: bool = False
    answered: str | None = None
    pending: str | None = None
    asked_style: int = 0
    challenges: int = 0
    turns: int = 0


def known(history: Sequence[tuple[Role, str]]) -> Known:
    """What is known after the whole history."""
    state = Known()
    said = ""
    for role, text in history:
        if role == Role.AGENT:
            said = text
            state.turns += 1
        elif role == Role.USER and not state.turns:
            words = intents.clean(text)
            state.topic = next((topic for topic in TOPICS if topic.lower() in words), state.topic)
        elif role == Role.USER:
            _read_exchange(state, said, text)
    return state


def _read_exchange(state: Known, said: str, text: str) -> None:
    move, signs = teacher_move(said), student_signs(text)
    if move.presents:
        state.presented += [aspect for aspect in move.aspects if aspect in TOPICS[state.topic]]
    if signs.told or (signs.pleased and move.style):
        state.style = signs.told or move.style
    elif move.style and not move.asks:
        state.excluded.add(move.style)
    state.asked_style += move.asks_style
    state.challenges += move.challenges
    state.distressed = signs.distressed
    named = intents.names(intents.clean(text), TOPICS[state.topic]) if signs.words else []
    state.answered = named[0] if named and (move.asks or move.challenges) else None
    state.pending = "asked" if move.asks or move.challenges else "presented" if move.presents else None


def probe(history: Sequence[tuple[Role, str]]) -> Probe | None:
    """If the student has just told how it likes to learn: a presentation in this style, and the same in another."""
    state = known(history)
    wished = student_signs(history[-1][1]).told if history and history[-1][0] == Role.USER and state.turns else None
    if wished is None or state.distressed or state.pending is not None:
        return None
    others = [style for style in PRESENT if style != wished and style not in state.excluded]
    fresh = [aspect for aspect in TOPICS[state.topic] if aspect not in state.presented]
    if not others or not fresh:
        return None
    number = state.turns + len(history[-1][1])
    praise, pick = PRAISE[number % len(PRAISE)], number % 2
    styles = (wished, others[number % len(others)])
    return Probe(*(f"{praise} {PRESENT[style][pick]}".format(aspect=fresh[0]) for style in styles))


class Teacher:
    """A scripted teacher: `expert`, `greedy` or `random`; KeyError for another name."""

    def __init__(self, name: str, seed: int) -> None:
        self._parts = {"expert": self._expert, "greedy": self._greedy, "random": self._random}[name]
        self._rng = random.Random(f"education/{name}/{seed}")

    def respond(self, history: Sequence[tuple[Role, str]]) -> str:
        """The next message."""
        return " ".join(self._parts(known(history)))

    def _expert(self, state: Known) -> list[str]:
        heed = self._comfort(state)
        if state.answered is not None:
            heed.append(self._say(TAKE_UP, state.answered))
        if state.style is None and state.asked_style < 2 and len(state.excluded) < 3:
            return [*heed, self._say(ASK_STYLE)]
        if state.answered is not None and state.challenges < CHALLENGES:
            return [*heed, self._say(CHALLENGE, state.answered)]
        if state.pending == "presented" and not state.distressed:
            return [*heed, self._say(ASK, state.presented[-1] if state.presented else self._fresh(state))]
        return [*heed, self._say(PRAISE), self._present(state)]

    def _greedy(self, state: Known) -> list[str]:
        return [*self._comfort(state), self._say(PRAISE), self._present(state)]

    def _random(self, state: Known) -> list[str]:
        aspect = self._rng.choice(TOPICS[state.topic] if self._rng.random() < 0.7 else ASPECTS)
        style = self._rng.choice(list(STYLES))
        kinds = [PRESENT[style], PRESENT[style], ASK, ASK_STYLE, CHALLENGE, COMFORT, TAKE_UP, GREET, PRAISE]
        return [self._say(self._rng.choice(kinds), aspect)]

    def _comfort(self, state: Known) -> list[str]:
        return [self._say(COMFORT)] if state.distressed else []

    def _present(self, state: Known) -> str:
        untried = [style for style in STYLES if style not in state.excluded]
        style = state.style or self._rng.choice(untried or list(STYLES))
        return self._say(PRESENT[style], self._fresh(state))

    def _fresh(self, state: Known) -> str:
        """An aspect that was not presented yet, if there is one."""
        fresh = [aspect for aspect in TOPICS[state.topic] if aspect not in state.presented]
        return self._rng.choice(fresh or list(TOPICS[state.topic]))

    def _say(self, variants: Sequence[str], aspect: str = "") -> str:
        return self._rng.choice(variants).format(aspect=aspect)
