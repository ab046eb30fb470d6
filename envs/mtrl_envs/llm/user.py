"""A simulated user played by an LLM behind any OpenAI-compatible endpoint (chat completions).

1. The LLM gets a persona made from the context's hidden part, and the conversation with the roles swapped: what the
   agent says is its `user` message, what it says itself its `assistant` message. The agent never sees the persona.
2. The conversation ends when a reply carries the end marker: `[END: bought ...]` or `[END: left]`. What may follow
   "bought" is the environment's: a product's name, a price. The marker is removed from what the agent reads.
3. If the agent's final answer is graded (`Role.final`), giving one ends the conversation; the LLM can only leave before.
4. Only a well-formed marker that fits what was said before ends a conversation; it closes the reply, but for punctuation.
   A torn or contradictory one is a `DataError`, never a reward. Errors of the endpoint: `mtrl_envs.llm.completions`.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from mtrl_envs.base import Outcome, Reply, User
from mtrl_envs.llm.completions import LLMSettings as LLMSettings
from mtrl_envs.llm.completions import complete
from mtrl_envs.scripted.intents import LIMIT
from mtrl_ray.dialogue.conversation import StopReason
from mtrl_ray.errors import DataError

END_RULES = (
    "Speak only as this person, one or two short sentences per message. When you buy, end your message with "
    "[END: bought {what}]. When you lose patience and leave, end your message with [END: left]. "
    "Never write such a marker before you have decided."
)
"""The part of a persona that explains the end marker; `what` is the environment's."""

LEAVE_RULES = (
    "Speak only as this person, one short sentence per message. When you lose patience and leave, end your message with "
    "[END: left]."
)
"""The same where the agent's final answer ends the conversation."""

_MARKER = re.compile(r"\[END:\s*(?P<event>bought|left)\b\s*(?P<detail>[^\[\]]{0,60})\][\s.,;:!?*_`)]*$", re.IGNORECASE)
_TORN = re.compile(r"\[\s*END\b", re.IGNORECASE)
_CALL = "Hello, how can I help you?"


@dataclass(frozen=True)
class Ending:
    """What an end marker says: `bought`, and the text after it (a product, a price)."""

    bought: bool
    detail: str


@dataclass(frozen=True)
class Role:
    """What an environment adds to an LLM user.

    `persona`: its system prompt. `settle(ending, said)`: the outcome, given everything that was said to and by the LLM
    (raises DataError if that contradicts the ending). `nothing`: the outcome of a conversation without an ending.
    `deliver(response, rng)`: what reaches the user in place of the response; None: the response.
    `final(response)`: the outcome of a response that is a final answer; None for any other.
    """

    persona: str
    settle: Callable[[Ending, list[tuple[str, str]]], Outcome]
    nothing: Outcome
    deliver: Callable[[str, random.Random], str | None] = lambda response, rng: None
    final: Callable[[str], Outcome | None] = lambda response: None


def task_role(persona: str, final: Callable[[str], Outcome | None], nothing: Outcome) -> Role:
    """The role of a user whose conversation ends with the agent's final answer, or with its leaving."""

    def settle(ending: Ending, said: list[tuple[str, str]]) -> Outcome:
        if ending.bought:
            raise DataError(f"the LLM user claims to have bought {ending.detail!r}; this user can only leave")
        return nothing

    return Role(f"{persona} {LEAVE_RULES}", settle, nothing, final=final)


class LLMUser(User):
    """One conversation with an LLM. The reward of an ending is its score."""

    blocking: ClassVar[bool] = True

    def __init__(self, settings: LLMSettings, role: Role, key: str, seed: int) -> None:
        self._settings = settings
        self._role = role
        self._key = key
        self._seed = seed
        self._said: list[tuple[str, str]] = []
        self._outcome = role.nothing

    def opening(self) -> str:
        """The LLM's first message. Raises DataError if it ends the conversation with it."""
        text, ending = self._ask(_CALL)
        if ending is not None:
            raise DataError("the LLM user ended the conversation with its first message; its persona is not followed")
        return text

    def reply(self, response: str) -> Reply:
        """The LLM's answer. Raises EngineError if the endpoint fails, DataError for an ending without sense."""
        final = self._role.final(response)
        if final is not None:
            self._outcome = final
            return Reply("Thanks, bye.", reward=final.score, stop=StopReason.OUTCOME)
        sent = self._role.deliver(response, random.Random(f"{self._key}/{len(self._said)}"))
        text, ending = self._ask((response if sent is None else sent)[:LIMIT])
        if ending is None:
            return Reply(text, sent)
        self._outcome = self._role.settle(ending, self._said)
        stop = StopReason.OUTCOME if ending.bought else StopReason.USER_LEFT
        return Reply(text, sent, reward=self._outcome.score, stop=stop)

    def redraw(self, seed: int) -> None:
        """See `User.redraw`."""
        self._key, self._seed = f"{self._key}/{seed}", seed

    def outcome(self) -> Outcome:
        """What the ending says, or nothing achieved."""
        return self._outcome

    def _ask(self, message: str) -> tuple[str, Ending | None]:
        readable = message.encode("utf-8", "replace").decode()
        self._said.append(("user", readable if readable.strip() else "(silence)"))
        content = complete(self._settings, self._role.persona, self._said, self._seed)[:LIMIT]
        text, ending = parse_ending(content)
        self._said.append(("assistant", text))
        return text, ending


def parse_ending(content: str) -> tuple[str, Ending | None]:
    """The words of a reply, and the ending its marker states. Raises DataError for a marker that cannot be read."""
    match = _MARKER.search(content)
    text = content[: match.start()].rstrip().rstrip("*_`").strip() if match else content.strip()
    if _TORN.search(text):
        raise DataError(
            f"the LLM user wrote an end marker that cannot be read, near {_TORN.split(text, 1)[1][:40]!r}; "
            "it has to close its message with [END: bought ...] or [END: left]"
        )
    if match is None:
        return text, None
    return text, Ending(match["event"].lower() == "bought", match["detail"].strip())
