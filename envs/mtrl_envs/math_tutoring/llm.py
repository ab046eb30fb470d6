"""The pupil of `math_tutoring` played by an LLM: its system prompt. The answer is graded as with the scripted user."""

from typing import Any

from mtrl_envs.base import Outcome
from mtrl_envs.llm.user import LLMSettings, LLMUser, task_role
from mtrl_envs.math_tutoring.problems import FAMILIES, WISH_ANSWERS
from mtrl_envs.math_tutoring.user import Pupil


def pupil(settings: LLMSettings, key: str, seed: int, problem: dict[str, Any]) -> LLMUser:
    """An LLM pupil."""
    scripted = Pupil(key, problem, 0.0)

    def final(response: str) -> Outcome | None:
        answer = scripted.read(response).answer
        return None if answer is None else scripted.grade(answer)

    return LLMUser(settings, task_role(persona(problem), final, scripted.grade("")), key, seed)


def persona(problem: dict[str, Any]) -> str:
    """The system prompt of a pupil."""
    family, thing = FAMILIES[problem["family"]], problem["thing"]
    facts = [family.answers[topic][1].format(n=problem[topic], thing=thing) for topic in ("first", "second")]
    return (
        f"You need help with a word problem: {family.requests[0].format(thing=thing)} What you know: {' '.join(facts)} "
        f"How you want the answer: {WISH_ANSWERS[problem['wish']][0]} You start with the bare question, make little "
        "effort, and tell a fact only when you are asked for it, one per message. You never calculate yourself. "
        f"After {problem['patience']} useless messages you leave."
    )
