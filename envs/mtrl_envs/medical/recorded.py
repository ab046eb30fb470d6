"""The patient and the scripted doctors of recorded consultations (`mtrl_envs.medical.consultations`).

1. The patient opens with the recorded description. A question gets the recorded answer to the most similar recorded
   question that was not used yet, by shared words and topics. A question without a similar one is answered with "No."
2. Noise works as for every patient: vague answers, and slips (the answer to another question) that are corrected later.
3. The record does not say which answer decides the diagnosis: every gain is 0 and `key_turn` is -1.
4. The scripted doctors diagnose by keywords. They are good enough for a warm start, but they are no upper baseline.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mtrl_envs.base import Outcome
from mtrl_envs.medical.consultations import DISEASES, assess
from mtrl_envs.medical.moves import ASKS, doctor_move
from mtrl_envs.medical.user import graded
from mtrl_envs.scripted import intents
from mtrl_envs.scripted.asking import GREETINGS
from mtrl_envs.scripted.telling import Move, TellingUser
from mtrl_ray.dialogue.conversation import Role

ANSWER_LIMIT = 240
"""Characters after which a recorded message is cut."""

NOTHING = "nothing"
"""The topic of questions that resemble no recorded one."""

_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an and any are at be been can could did do does feel for had has have hello how i in is it kind long may me more of "
        "on or please sir so that the there this to was were what when where which with would you your",
    )
)
"""Stop words of questions."""


class RecordedPatient(TellingUser):
    """A recorded patient. `case`: description, diagnosis, advice, answers (question, answer), told, patience."""

    def __init__(self, key: str, case: dict[str, Any], noise: float) -> None:
        super().__init__(key, (), case["patience"], noise)
        self._case = case
        self._words = [words(question) for question, _ in case["answers"]]

    def request(self) -> str:
        """The recorded description."""
        return shortened(self._case["description"])

    def read(self, response: str) -> Move:
        """Parse a response; it asks about the recorded questions it resembles, the most similar first."""
        move = recorded_move(response)
        if not move.asks:
            return move
        asked = words(response)
        likeness = {str(at): len(asked & own) / len(asked | own) for at, own in enumerate(self._words) if asked & own}
        return replace(move, asks=(*sorted(likeness, key=lambda at: -likeness[at]), NOTHING))

    def tell(self, topic: str) -> str:
        """The recorded answer."""
        return "No." if topic == NOTHING else shortened(self._case["answers"][int(topic)][1])

    def mistake(self, topic: str) -> str:
        """The answer to another question."""
        others = [str(at) for at in range(len(self._case["answers"])) if str(at) != topic]
        return self.tell(self.rng.choice(others or [NOTHING]))

    def grade(self, answer: str) -> Outcome:
        """Points / 10 against the recorded diagnosis and recommendation."""
        return graded(assess(answer, self._case), bool(answer))

    def attainable(self, told: frozenset[str]) -> float:
        """A constant, because the record does not say what each answer is worth."""
        return 1.0


CATCHWORDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("constipation", intents.phrases(r"constipat", r"unable to (pass|have)", r"hard stool", r"can't go")),
    ("enteritis", intents.phrases(r"diarrh", r"loose", r"bowel", r"bloody stool")),
    ("reflux", intents.phrases(r"reflux", r"heartburn", r"burning")),
    ("common cold", intents.phrases(r"fever", r"cough", r"runny nose", r"sneez")),
)
DEFAULT = "gastritis"
"""The most frequent diagnosis of the data set."""

QUESTIONS = (
    "How long has this been going on?",
    "Do you have any other symptoms?",
    "Do you have any chronic illness or take any medicine?",
    "How are your bowel movements?",
)
RECOMMENDATION = "Eat bland meals, avoid spicy food, drink water, and take the tablets."


class RecordedDoctor:
    """A scripted doctor: `expert`, `greedy` or `random`; KeyError for another name."""

    def __init__(self, name: str, seed: int) -> None:
        self._questions = {"expert": 3, "greedy": 0, "random": 0}[name]
        self._aimless = name == "random"
        self._rng = random.Random(f"medical/recorded/{name}/{seed}")

    def respond(self, history: Sequence[tuple[Role, str]]) -> str:
        """The next response."""
        taken = sum(role == Role.AGENT for role, _ in history)
        if self._aimless:
            diagnosis = self._rng.choice(list(DISEASES))
            return self._rng.choice([*QUESTIONS, *GREETINGS, f"Diagnosis: {diagnosis}. {RECOMMENDATION}"])
        if taken < self._questions:
            return QUESTIONS[taken]
        said = intents.clean(" ".join(text for role, text in history if role == Role.USER))
        diagnosis = next((name for name, pattern in CATCHWORDS if pattern.search(said)), DEFAULT)
        return f"Diagnosis: {diagnosis}. {RECOMMENDATION}"


def recorded_move(response: str) -> Move:
    """Parse a response to any recorded patient; every question has the topic of some recorded question."""
    move = doctor_move(response, DISEASES.values())
    asks = any(intents.is_question(part) for part in intents.sentences(intents.clean(response)))
    return replace(move, asks=(NOTHING,) if asks else ())


def words(text: str) -> set[str]:
    """The content words of a question, without plural endings, and its topics."""
    cleaned = intents.clean(text)
    topics = {f"about {topic}" for topic, pattern in ASKS.items() if pattern.search(cleaned)}
    return topics | {word.removesuffix("s") for word in re.findall(r"[a-z]+", cleaned) if word not in _STOP}


def shortened(text: str) -> str:
    """A recorded message on one line, cut after a word."""
    line = " ".join(text.split())
    return line if len(line) <= ANSWER_LIMIT else line[:ANSWER_LIMIT].rsplit(" ", 1)[0]
