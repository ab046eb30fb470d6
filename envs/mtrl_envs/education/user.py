"""The student of `education`: a hidden way of learning, a reaction to other styles, and moods (2405.14655 §6.1).

1. A presentation in the preferred style pleases; in any other the student reacts: rude or disengaged ones sulk, frustrated
   or anxious ones are distressed, some adapt from then on, some tell what they prefer.
2. A distressed student learns nothing until it is comforted or taught in its style; a sulking one until it is taught in its
   style or asked how it likes to learn. Students answer this question, sometimes vaguely.
3. A question about the subject is answered with an aspect of the topic after something was presented; a challenge after
   an answer was taken up. Otherwise they come too early and distress students who tend to distress.
4. Nonsense, hostility, ignored distress, and the wrong style after the student told its wish cost patience. Without patience
   the student leaves. Otherwise the lesson ends after its number of agent turns, scored by the teacher's conduct.
"""

import random
from typing import Any

from mtrl_envs.base import Outcome, Reply, User
from mtrl_envs.education.conduct import Exchange, Lesson, judge, outcome
from mtrl_envs.education.moves import TOPICS, TeacherMove, content, teacher_move
from mtrl_envs.scripted import intents
from mtrl_ray.dialogue.conversation import StopReason

SULKING = ("rude", "disengaged")
DISTRESSED = ("frustrated", "anxious")
REACTIONS = (*SULKING, *DISTRESSED, "adapts", "tells")
"""Reactions to a style that the student does not prefer."""

VAGUE = 0.15
"""Probability of a vague answer to the question how the student likes to learn."""

WISHES: dict[str, tuple[str, ...]] = {
    "interactive": ("I would rather discuss it.", "I like to talk things over."),
    "direct": ("I would rather have the facts.", "I like a direct lesson."),
    "hands-on": ("I would rather build something.", "I like to use my hands."),
    "creative": ("I would rather hear a story.", "I like to draw and imagine."),
}
"""Sentences that tell a preference, by style."""

SAYINGS: dict[str, tuple[str, ...]] = {
    "opening": ("Hi, teach me about {topic}.", "Hello, I want to learn about {topic}.", "Can you teach me {topic}?"),
    "pleased": ("I like that.", "That is fun.", "Nice, more of that."),
    "fine": ("Okay.", "I see."),
    "rude": ("So what?", "This is boring."),
    "disengaged": ("Hm.", "Whatever."),
    "frustrated": ("I do not get it.", "This makes no sense."),
    "anxious": ("I am afraid I will fail.", "I am so nervous."),
    "adapts": ("Okay, I can do that.", "Okay, if you say so."),
    "answer": ("I would say {aspect}.", "I think of the {aspect}.", "I guess the {aspect}."),
    "early": ("I do not know yet.", "No idea."),
    "hard": ("That is too hard for me.", "I cannot do that."),
    "relieved": ("Thanks, I feel better.", "Okay, thank you."),
    "vague": ("I am not sure.", "I do not know."),
    "lost": ("What do you mean?", "I do not follow."),
    "leave": ("I am leaving.", "I have enough, bye."),
    "end": ("Thanks, bye.", "Time is up, bye."),
}


class Student(User):
    """A scripted student. `profile`: topic, preference, reaction, order (of aspects in its mind), turns, patience."""

    def __init__(self, key: str, profile: dict[str, Any]) -> None:
        self._key = key
        self._profile = profile
        self._lesson = Lesson(profile["preference"], adapts=profile["reaction"] == "adapts")
        self._patience = profile["patience"]
        self._upset = self._adapted = self._taught = self._understood = False
        self._wished = False
        self._answer: frozenset[str] = frozenset()
        self._order = list(profile["order"])
        self._result: Outcome | None = None
        self.rng = random.Random(f"{key}/opening")

    def opening(self) -> str:
        """A request to be taught the topic."""
        return self._say("opening", topic=self._profile["topic"])

    def reply(self, response: str) -> Reply:
        """React to the teacher; the lesson's last reply ends with a farewell."""
        turn = len(self._lesson.exchanges)
        self.rng = random.Random(f"{self._key}/{turn}")
        move = teacher_move(response)
        text = self._react(move)
        left, over = self._patience <= 0, turn + 1 >= self._profile["turns"]
        if left or over:
            text = self._say("leave") if left else f"{text} {self._say('end')}"
        self._lesson.exchanges.append(Exchange(response, text))
        if left:
            return Reply(text, stop=StopReason.USER_LEFT)
        if not over:
            return Reply(text)
        self._result = outcome(judge(self._lesson))
        return Reply(text, reward=self._result.score, stop=StopReason.OUTCOME)

    def redraw(self, seed: int) -> None:
        """See `User.redraw`."""
        self._key = f"{self._key}/{seed}"

    def outcome(self) -> Outcome:
        """The score of the teacher's conduct; 0 if the lesson did not reach its end."""
        return self._result or outcome(judge(self._lesson), ended=False)

    def _react(self, move: TeacherMove) -> str:
        self._understood = self._understood or (move.takes_up and bool(self._answer & move.words))
        self._answer = frozenset()
        if move.hostile:
            self._patience -= 3
            return self._say("lost")
        matched = move.style == self._profile["preference"]
        if self._upset and not (matched or self._reconciled(move)):
            self._patience -= 1
            return self._say(self._profile["reaction"])
        relieved = self._upset and not matched
        self._upset = False
        if move.presents and not self._on_topic(move):
            self._patience -= 1
            return self._say("lost")
        if move.challenges:
            return self._answered(self._understood, "hard", move)
        if move.presents:
            return self._taught_in(move, matched)
        if move.asks_style:
            return self._tell() if self.rng.random() >= VAGUE else self._say("vague")
        if move.asks:
            return self._answered(self._taught, "early", move)
        if relieved:
            return self._say("relieved")
        if move.understood:
            return self._say("fine")
        self._patience -= 1
        return self._say("lost")

    def _reconciled(self, move: TeacherMove) -> bool:
        return move.comforts if self._profile["reaction"] in DISTRESSED else move.asks_style

    def _on_topic(self, move: TeacherMove) -> bool:
        return not move.aspects or any(aspect in TOPICS[self._profile["topic"]] for aspect in move.aspects)

    def _taught_in(self, move: TeacherMove, matched: bool) -> str:
        self._taught = True
        if matched:
            return self._answered(True, "", move) if move.asks else self._say("pleased")
        if self._adapted:
            return self._answered(True, "", move) if move.asks else self._say("fine")
        reaction = self._profile["reaction"]
        self._patience -= self._wished
        self._adapted = reaction == "adapts"
        self._upset = reaction in (*SULKING, *DISTRESSED)
        return self._tell() if reaction == "tells" else self._say(reaction)

    def _tell(self) -> str:
        self._wished = True
        return self.rng.choice(WISHES[self._profile["preference"]])

    def _answered(self, ready: bool, saying: str, move: TeacherMove) -> str:
        """Answer a question or challenge with an aspect it does not name; use `saying` if it comes too early."""
        if not ready:
            self._upset = self._profile["reaction"] in DISTRESSED
            return self._say(saying)
        aspect = next((aspect for aspect in self._order if aspect not in move.aspects[-1:]), self._order[0])
        self._order = [*(other for other in self._order if other != aspect), aspect]
        self._answer = content(intents.clean(aspect))
        return self._say("answer", aspect=aspect)

    def _say(self, saying: str, **names: str) -> str:
        return self.rng.choice(SAYINGS[saying]).format(**names)
