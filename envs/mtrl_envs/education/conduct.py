"""The judge of `education`: a teacher's conduct over a whole lesson, and the preference between two lessons (2405.14655 §6.1).

1. `judge` parses a lesson turn by turn and counts the following, which depends on the order of the turns:
   - presented: a presentation of something new counts 1, without enthusiasm ½;
   - taken_up: a question or challenge whose answer the next message takes up (acknowledges it and repeats a word of it);
   - challenged: an answered challenge after an answer was taken up, to a student without distress;
   - comforted: fraction of the signs of distress that the next message answers with comfort;
   - matched: fraction of the presentations in the preferred style, after the student showed or told it (an adapting student's
     other styles count half); `UNKNOWN` if it never showed;
   - varied: fraction of the teacher's messages that are not a repetition.
2. Counts have diminishing returns, f(n) = 1 - 0.4^n, and the criteria are combined multiplicatively:

       teaching = 0.35 f(presented) + 0.35 √(f(presented) f(taken_up)) + 0.3 √(f(taken_up) f(challenged))
       quality  = teaching · (0.25 + 0.75 matched) · (0.4 + 0.6 comforted) · (0.4 + 0.6 varied)

   A lesson that the student left before its end has quality 0.
3. Three manners of conduct beat each other in a cycle: lecturing loses to questioning, questioning to coaching (challenge
   and comfort), coaching to lecturing. Messages without a manner lose to all. `margin` mixes both parts:

       advantage = sharpness · ((1 - cyclic) (quality - quality') + cyclic (cycle(m, m') + idle' - idle))

   with m the fractions of the manners in the messages. With `cyclic` > 0 no reward represents the preferences; at 1 the only
   equilibrium is to use the three manners equally often.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from mtrl_envs.base import Outcome
from mtrl_envs.education.moves import StudentSigns, TeacherMove, student_signs, teacher_move
from mtrl_envs.preferences import bradley_terry
from mtrl_envs.scripted import intents

UNKNOWN = 0.2
"""`matched` if the student's preference never showed."""
UNTRIED = 0.5
"""`matched` if the preference showed and nothing was presented afterwards."""
ADAPTED = 0.5
"""Weight of a presentation in another style to a student who adapts."""

MANNERS = ("lecturing", "questioning", "coaching")


@dataclass(frozen=True)
class Exchange:
    """One message of the teacher, and the student's reply."""

    teacher: str
    student: str


@dataclass
class Lesson:
    """The messages of a lesson, and its student."""

    preference: str
    adapts: bool
    exchanges: list[Exchange] = field(default_factory=list)


@dataclass(frozen=True)
class Conduct:
    """The criteria of rule 1. `manners`: fractions of lecturing, questioning and coaching messages; the rest is idle."""

    presented: float
    taken_up: int
    challenged: int
    comforted: float
    matched: float
    varied: float
    manners: tuple[float, float, float]

    @property
    def quality(self) -> float:
        """The quality of the lesson, in [0, 1] (rule 2)."""
        presented, taken_up, challenged = map(_returns, (self.presented, self.taken_up, self.challenged))
        teaching = 0.35 * presented + 0.35 * math.sqrt(presented * taken_up) + 0.3 * math.sqrt(taken_up * challenged)
        care = (0.4 + 0.6 * self.comforted) * (0.4 + 0.6 * self.varied)
        return teaching * (0.25 + 0.75 * self.matched) * care


def _returns(count: float) -> float:
    return 1.0 - 0.4**count


def outcome(conduct: Conduct, ended: bool = True) -> Outcome:
    """The quality as the score and the criteria as metrics; `ended`: whether the student stayed to the end."""
    parts = asdict(conduct)
    shares = dict(zip(MANNERS, parts.pop("manners"), strict=True))
    metrics = {name: float(value) for name, value in (parts | shares).items()}
    return Outcome(conduct.quality if ended else 0.0, metrics | {"stayed": float(ended)})


def judge(lesson: Lesson) -> Conduct:
    """The teacher's conduct in a lesson."""
    record = _Record(lesson.preference, lesson.adapts)
    for exchange in lesson.exchanges:
        record.read(teacher_move(exchange.teacher), student_signs(exchange.student))
    spoken = [intents.clean(exchange.teacher) for exchange in lesson.exchanges]
    turns = max(1, len(spoken))
    return Conduct(
        presented=record.presented,
        taken_up=record.taken_up,
        challenged=record.challenged,
        comforted=record.comforted / record.distressed if record.distressed else 1.0,
        matched=record.match(),
        varied=len(set(spoken)) / turns,
        manners=_shares(record.manners, turns),
    )


class _Record:
    """The running counts of a lesson up to the current turn."""

    def __init__(self, preference: str, adapts: bool) -> None:
        self._preference = preference
        self._adapts = adapts
        self._taught: set[str] = set()
        self._before = StudentSigns()
        self._asked = self._challenged = self._shown = False
        self._matches: list[float] = []
        self.presented = 0.0
        self.taken_up = self.challenged = self.comforted = self.distressed = 0
        self.manners: Counter[str | None] = Counter()

    def read(self, move: TeacherMove, reply: StudentSigns) -> None:
        """Add one exchange."""
        self._answer_to(move)
        if move.presents:
            self._presentation(move)
        ready = self.taken_up > 0 and not self._before.distressed
        answered = bool(reply.words) and not reply.pleased
        self._asked = (move.asks or (move.challenges and ready)) and answered
        self.challenged += move.challenges and ready and answered
        self._shown = self._shown or reply.pleased or reply.told is not None
        self.manners[manner(move)] += 1
        self._before = reply

    def match(self) -> float:
        """`matched` of rule 1."""
        if not self._shown:
            return UNKNOWN
        return sum(self._matches) / len(self._matches) if self._matches else UNTRIED

    def _answer_to(self, move: TeacherMove) -> None:
        """Count whether a message takes up the student's last answer and comforts its distress."""
        if self._before.distressed:
            self.distressed += 1
            self.comforted += move.comforts
        self.taken_up += self._asked and move.takes_up and bool(self._before.words & move.words)

    def _presentation(self, move: TeacherMove) -> None:
        fresh = move.words - self._taught
        self._taught |= move.words
        if any(aspect_word(aspect) in fresh for aspect in move.aspects) or (not move.aspects and len(fresh) >= 3):
            self.presented += 1.0 if move.praises else 0.5
        if self._shown:
            other = ADAPTED if self._adapts else 0.0
            self._matches.append(1.0 if move.style == self._preference else other)


def aspect_word(aspect: str) -> str:
    """An aspect in the normal form of the words of a move."""
    return aspect.removesuffix("s")


def manner(move: TeacherMove) -> str | None:
    """The manner of a message; None for an idle one."""
    if move.asks or move.asks_style:
        return "questioning"
    if move.challenges or move.comforts:
        return "coaching"
    return "lecturing" if move.presents else None


def _shares(manners: Counter[str | None], turns: int) -> tuple[float, float, float]:
    lecturing, questioning, coaching = (manners[name] / turns for name in MANNERS)
    return lecturing, questioning, coaching


def cycle(first: Iterable[float], second: Iterable[float]) -> float:
    """Cyclic advantage of the first lesson's manners over the second's, in [-1, 1]; antisymmetric."""
    lecturing, questioning, coaching = first
    lecturing_, questioning_, coaching_ = second
    return (
        (questioning * lecturing_ - lecturing * questioning_)
        + (coaching * questioning_ - questioning * coaching_)
        + (lecturing * coaching_ - coaching * lecturing_)
    )


def margin(first: tuple[Conduct, float], second: tuple[Conduct, float], cyclic: float, sharpness: float) -> float:
    """Log-odds of preferring the first lesson (rule 3). A lesson is its conduct and its quality (0 if the student left)."""
    (one, quality), (other, other_quality) = first, second
    manners = cycle(one.manners, other.manners) + (sum(one.manners) - sum(other.manners))
    return bradley_terry(sharpness * ((1 - cyclic) * (quality - other_quality) + cyclic * manners))
