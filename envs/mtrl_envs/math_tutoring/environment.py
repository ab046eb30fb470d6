"""`math_tutoring`: a pupil has a word problem and tells its numbers and wish if asked; the answer is checked (2603.23550).

1. The request names the story ("What do my pens cost?"). Two numbers and a wish (exact, rounded, doubled) are hidden; the
   opening tells at most two of them.
2. The agent has at most five turns. A final answer ends the conversation: the score is 1 if it is right, otherwise 0.
3. An immediate answer (`greedy`) is a guess; asking for everything first (`expert`) takes up to four turns.
4. Problems of the two splits differ in story, numbers or wish; the way a problem is told does not depend on the split.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mtrl_envs.base import Agent, Context, Probe, User
from mtrl_envs.llm.options import user_kind
from mtrl_envs.math_tutoring.agents import OTHERS, Tutor
from mtrl_envs.math_tutoring.llm import pupil as llm_pupil
from mtrl_envs.math_tutoring.moves import tutor_move
from mtrl_envs.math_tutoring.problems import TOPICS, sample_problem
from mtrl_envs.math_tutoring.user import Pupil
from mtrl_envs.scripted.intents import clean, template_markers
from mtrl_envs.scripted.options import share
from mtrl_envs.scripted.slots import SLOTS, Horizon, HorizonEnvironment, SlotAgent, SlotUser
from mtrl_envs.scripted.splits import draw
from mtrl_ray.dialogue.conversation import Role

SYSTEM = "Solve the user's problem. Ask for missing numbers and wishes. End with: The answer is N."

OPENINGS: tuple[tuple[str, ...], ...] = (
    (),
    (),
    ("first",),
    ("second",),
    ("wish",),
    ("first", "second"),
    ("first", "second"),
    ("first", "second"),
)
"""Topics that the opening tells, drawn uniformly from this list."""

LONGEST_RESPONSE = 60
"""Longest well-formed response, in words."""


class MathTutoring(HorizonEnvironment):
    """Word problems.

    Options: `noise` (probability that an answer of the scripted user is vague or wrong); `horizon` and `bernoulli`
    (`mtrl_envs.scripted.slots`); `user` ("scripted" or "llm") and `llm` (settings of `mtrl_envs.llm.user.LLMSettings`).
    Raises ConfigurationError for invalid values.
    """

    name: ClassVar[str] = "math_tutoring"
    max_turns: ClassVar[int] = 5
    warm_start: ClassVar[dict[str, float]] = {"expert": 0.4, "greedy": 0.5, "random": 0.1}

    def __init__(
        self,
        *,
        noise: float = 0.1,
        horizon: int | None = None,
        bernoulli: bool = False,
        user: str = "scripted",
        llm: Mapping[str, Any] | None = None,
    ) -> None:
        self._noise = share(self.name, "noise", noise)
        self._llm = user_kind(self.name, user, llm)
        self._horizon = Horizon.parse(self.name, horizon, bernoulli, ["user: llm"] * (self._llm is not None))

    def context(self, split: str, index: int) -> Context:
        """The `index`-th problem of a split."""
        if self._horizon is not None:
            return self._horizon.context(self.name, split, index, sample_problem, TOPICS)
        problem = draw(self.name, split, index, sample_problem)
        rng = random.Random(f"{self.name}/{split}/{index}/manner")
        problem |= {"told": list(rng.choice(OPENINGS)), "patience": rng.choice([2, 3, 4])}
        return Context(f"{split}-{index}", split, index, SYSTEM, problem)

    def user(self, context: Context, seed: int) -> User:
        """The pupil."""
        key = f"{self.name}/{context.id}/{seed}"
        if self._llm is not None:
            return llm_pupil(self._llm, key, seed, context.hidden)
        if self._horizon is not None:
            pupils = [Pupil(f"{key}/{turn}", slot, 0.0) for turn, slot in enumerate(context.hidden[SLOTS])]
            return SlotUser(key, pupils, TOPICS, self._noise, self._horizon)
        return Pupil(key, context.hidden, self._noise)

    def agent(self, name: str, seed: int) -> Agent:
        """The scripted agent `expert`, `greedy` or `random`. KeyError for another name."""
        tutor = Tutor(name, seed)
        return tutor if self._horizon is None else SlotAgent(name, tutor)

    def probe(self, history: Sequence[tuple[Role, str]]) -> Probe | None:
        """See `AskingAgent.probe`."""
        if self._horizon is not None:
            return None
        return Tutor("expert", 0).probe(history, OTHERS)

    def well_formed(self, response: str) -> bool:
        """Whether a response asks something, answers or greets, without template markup, in `LONGEST_RESPONSE` words."""
        short = len(clean(response).split()) <= LONGEST_RESPONSE
        return short and not template_markers(response) and tutor_move(response, None).understood
