"""`education`: a teacher and a student with a hidden way of learning; the oracle compares whole lessons (2405.14655 §6.1).

1. The student opens with a topic. Hidden: the preferred style of lessons (interactive, direct, hands-on, creative), the
   reaction to other styles (rude, disengaged, frustrated, anxious; adapts; tells), patience, and the lesson's length.
2. The student ends the lesson. The paper's lessons have 10 to 15 turns; the default here is 6 to 8, so that a tiny
   model needs seconds for hundreds of them (`shortest`, `longest`).
3. `prefer` is the oracle: it compares the teachers' conduct over the two whole lessons (`mtrl_envs.education.conduct`).
4. The score, which is also the reward of the last turn, is the absolute quality by the same judge. It exists
   for reports and for algorithms that need a reward; learning from preferences does not use it.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mtrl_envs.base import Agent, Context, Environment, Probe, User
from mtrl_envs.education.agents import Teacher, probe
from mtrl_envs.education.conduct import Conduct, judge, margin
from mtrl_envs.education.llm import lesson_of
from mtrl_envs.education.llm import student as llm_student
from mtrl_envs.education.moves import STYLES, TOPICS, teacher_move
from mtrl_envs.education.user import REACTIONS, Student
from mtrl_envs.llm.options import user_kind
from mtrl_envs.preferences import Kind, Noise, check_pair, identity, probability
from mtrl_envs.scripted.intents import clean, template_markers
from mtrl_envs.scripted.options import positive, share
from mtrl_envs.scripted.splits import Profile, draw
from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason
from mtrl_ray.errors import ConfigurationError

SYSTEM = "Teach the student: present with enthusiasm, ask, take up answers, challenge, comfort."

LONGEST_RESPONSE = 60
"""Longest well-formed response, in words."""


class Education(Environment):
    """A teacher and a student.

    Options: `shortest` and `longest` (agent turns of a lesson); `user` ("scripted" or "llm") and `llm` (settings of
    `mtrl_envs.llm.user.LLMSettings`). Of the preferences: `cyclic` (weight of the part that is not transitive, 0 to 1),
    `sharpness` (log-odds per unit of quality), `preference_noise`, `preference_noise_kind` and `preference_seed` (see
    `mtrl_envs.preferences.Noise`). Raises ConfigurationError for invalid values.
    """

    name: ClassVar[str] = "education"
    max_turns: ClassVar[int] = 15
    warm_start: ClassVar[dict[str, float]] = {"expert": 0.45, "greedy": 0.35, "random": 0.2}
    criterion: ClassVar[str] = (
        "The assistant is a teacher. The better lesson is presented clearly and with enthusiasm, asks the student questions "
        "and takes up the answers, comforts a student who needs it, challenges one who can take it, and finds out and meets "
        "the way in which the student likes to learn."
    )

    def __init__(
        self,
        *,
        shortest: int = 6,
        longest: int = 8,
        user: str = "scripted",
        llm: Mapping[str, Any] | None = None,
        cyclic: float = 0.0,
        sharpness: float = 10.0,
        preference_noise: float = 0.0,
        preference_noise_kind: Kind = "expected",
        preference_seed: int = 0,
    ) -> None:
        self._turns = _lengths(shortest, longest)
        self._llm = user_kind(self.name, user, llm)
        self._cyclic = share(self.name, "cyclic", cyclic)
        self._sharpness = positive(self.name, "sharpness", sharpness)
        self._noise = Noise.parse(self.name, preference_noise, preference_noise_kind, preference_seed)

    def context(self, split: str, index: int) -> Context:
        """The `index`-th student of a split."""
        profile = draw(self.name, split, index, sample_profile)
        rng = random.Random(f"{self.name}/{split}/{index}/manner")
        profile |= {"turns": rng.randint(*self._turns), "patience": rng.choice([3, 4, 5])}
        return Context(f"{split}-{index}", split, index, SYSTEM, profile)

    def user(self, context: Context, seed: int) -> User:
        """The student."""
        key = f"{self.name}/{context.id}/{seed}"
        if self._llm is not None:
            return llm_student(self._llm, key, seed, context.hidden)
        return Student(key, context.hidden)

    def agent(self, name: str, seed: int) -> Agent:
        """The scripted agent `expert`, `greedy` or `random`. KeyError for another name."""
        return Teacher(name, seed)

    def probe(self, history: Sequence[tuple[Role, str]]) -> Probe | None:
        """See `agents.probe`."""
        return probe(history)

    def well_formed(self, response: str) -> bool:
        """Whether a response has at least one intent, no template markup, and at most `LONGEST_RESPONSE` words."""
        short = len(clean(response).split()) <= LONGEST_RESPONSE
        return short and not template_markers(response) and teacher_move(response).understood

    def prefer(self, first: Conversation, second: Conversation) -> float:
        """P(first ≻ second) by the teachers' conduct."""
        check_pair(self.name, first, second)
        preferred = margin(judged(first), judged(second), self._cyclic, self._sharpness)
        return probability(self._noise.apply(preferred, identity(first), identity(second)))


def judged(conversation: Conversation) -> tuple[Conduct, float]:
    """A lesson's conduct and its quality (0 if the student left). Raises DataError if its context is missing."""
    conduct = judge(lesson_of(conversation))
    return conduct, conduct.quality if conversation.stop in (StopReason.OUTCOME, StopReason.LOGGED) else 0.0


def sample_profile(rng: random.Random) -> Profile:
    """A random student: topic, preferred style, reaction, and the order in which it thinks of the topic's aspects."""
    topic = rng.choice(list(TOPICS))
    return {
        "topic": topic,
        "preference": rng.choice(list(STYLES)),
        "reaction": rng.choice(REACTIONS),
        "order": rng.sample(TOPICS[topic], len(TOPICS[topic])),
    }


def _lengths(shortest: int, longest: int) -> tuple[int, int]:
    numbers = all(isinstance(value, int) and not isinstance(value, bool) for value in (shortest, longest))
    if not numbers or not 1 <= shortest <= longest <= Education.max_turns:
        raise ConfigurationError(
            f"education: shortest is {shortest!r} and longest {longest!r}; they have to be whole numbers with "
            f"1 <= shortest <= longest <= {Education.max_turns}"
        )
    return shortest, longest
