"""The client of `document_writing` played by an LLM: its system prompt. Documents are scored as with the scripted user."""

from typing import Any

from mtrl_envs.base import Outcome
from mtrl_envs.document_writing.texts import document
from mtrl_envs.document_writing.user import Client
from mtrl_envs.llm.user import LLMSettings, LLMUser, task_role


def client(settings: LLMSettings, key: str, seed: int, order: dict[str, Any]) -> LLMUser:
    """An LLM client."""
    scripted = Client(key, order, 0.0)

    def final(response: str) -> Outcome | None:
        answer = scripted.read(response).answer
        return None if answer is None else scripted.grade(answer)

    return LLMUser(settings, task_role(persona(order), final, scripted.grade("")), key, seed)


def persona(order: dict[str, Any]) -> str:
    """The system prompt of a client."""
    return (
        f"You want somebody to write this {order['kind']} for you, and have it clearly in mind: "
        f'"{document(order["kind"], order["event"], order)}" Its tone is {order["tone"]}, it is {order["length"]}. You start '
        "with no more than what it is about, make little effort, and tell time, place, tone or length only when you are "
        "asked for it, one per message, without ever quoting the text. "
        f"After {order['patience']} useless messages you leave."
    )
