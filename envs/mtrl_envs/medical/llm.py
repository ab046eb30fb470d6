"""The patient of `medical` played by an LLM: its system prompt. The diagnosis is graded as with the scripted user."""

from typing import Any

from mtrl_envs.base import Outcome
from mtrl_envs.llm.user import LLMSettings, LLMUser, task_role
from mtrl_envs.medical.knowledge import PATIENT
from mtrl_envs.scripted.telling import TellingUser


def patient(settings: LLMSettings, key: str, seed: int, case: dict[str, Any], scripted: TellingUser) -> LLMUser:
    """An LLM patient; the scripted user `scripted` grades the final answer."""

    def final(response: str) -> Outcome | None:
        answer = scripted.read(response).answer
        return None if answer is None else scripted.grade(answer)

    return LLMUser(settings, task_role(persona(case), final, scripted.grade("")), key, seed)


def persona(case: dict[str, Any]) -> str:
    """The system prompt of a patient, either from the knowledge table or recorded."""
    if "answers" in case:
        facts = " ".join(f"Asked {question!r} you say {answer!r}." for question, answer in case["answers"])
        complaint = case["description"]
    else:
        facts = " ".join(PATIENT[topic][case[topic]][0] for topic in ("symptom", "history", "risk"))
        complaint = f"{PATIENT['complaint'][case['complaint']][0]} I am {case['age']}."
    return (
        f"You are a patient who talks to a doctor. Your complaint: {complaint} What you know besides: {facts} You start with "
        "the complaint alone, make little effort, and tell the rest only when you are asked for it, one thing per message. "
        f"You have no idea what the illness is. After {case['patience']} useless messages you leave."
    )
