"""A simulated user played by an LLM behind any OpenAI-compatible endpoint (chat completions).

1. The LLM gets a persona made from the context's hidden part, and the conversation with the roles swapped: what the
   agent says is its `user` message, what it says itself its `assistant` message. The agent never sees the persona.
2. The conversation ends when a reply carries the end marker: `[END: bought ...]` or `[END: left]`. What may follow
   "bought" is the environment's: a product's name, a price. The marker is removed from what the agent reads.
3. Where the agent's final answer is graded (`Role.final`), giving one ends the conversation; the LLM can only leave before.
4. Only a well-formed marker that fits what was said before ends a conversation. A torn or contradictory one is a
   `DataError`; an endpoint that does not answer, or answers nothing, is an `EngineError`. Neither is ever a reward.
5. The API key is read from the environment variable whose name is given, and appears in no message of this module.
"""

import functools
import os
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from mtrl_envs.base import Outcome, Reply, User
from mtrl_envs.scripted.intents import LIMIT
from mtrl_ray.dialogue.conversation import StopReason
from mtrl_ray.errors import ConfigurationError, DataError, EngineError

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

_MARKER = re.compile(r"\[END:\s*(?P<event>bought|left)\b\s*(?P<detail>[^\[\]]{0,60})\]\s*$", re.IGNORECASE)
_TORN = re.compile(r"\[\s*END\b", re.IGNORECASE)
_CREDENTIALS = re.compile(r"^\w+://[^/]*@|\?")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_CALL = "Hello, how can I help you?"


@dataclass(frozen=True)
class LLMSettings:
    """Where the LLM is and how it is asked; `timeout` in seconds per request, `retries` after the first try."""

    base_url: str
    model: str
    api_key_env: str | None = None
    timeout: float = 30.0
    retries: int = 3
    temperature: float = 0.8
    max_tokens: int = 120

    @classmethod
    def parse(cls, environment: str, given: Mapping[str, Any]) -> "LLMSettings":
        """Settings from a mapping. Raises ConfigurationError naming the key that cannot work."""
        known = [entry.name for entry in fields(cls)]
        unknown = sorted(set(given) - set(known))
        missing = [key for key in ("base_url", "model") if not given.get(key)]
        if unknown or missing:
            fault = f"unknown key {unknown[0]!r}" if unknown else f"{missing[0]} is missing"
            raise ConfigurationError(f"{environment}: llm: {fault}; the keys are {', '.join(known)}")
        settings = cls(**given)
        settings._check(environment)
        return settings

    def _check(self, environment: str) -> None:
        texts = {"base_url": self.base_url, "model": self.model}
        faults = [
            f"{key} is {value!r}, it has to be text" for key, value in texts.items() if not isinstance(value, str)
        ]
        if not faults and not self.base_url.startswith(("http://", "https://")):
            faults.append(f"base_url is {self.base_url!r}, it has to start with http:// or https://")
        if not faults and _CREDENTIALS.search(self.base_url):
            faults.append(
                "base_url carries a password or a query; it has to be an address alone, and api_key_env to "
                "name the environment variable that holds the key"
            )
        least = {"timeout": 0.001, "retries": 0, "temperature": 0, "max_tokens": 1}
        for key, bound in least.items():
            value = asdict(self)[key]
            whole = key in ("retries", "max_tokens")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or value < bound:
                faults.append(
                    f"{key} is {value!r}, it has to be a {'whole ' if whole else ''}number of at least {bound}"
                )
        if self.api_key_env is not None and not os.environ.get(str(self.api_key_env)):
            named = isinstance(self.api_key_env, str) and _VARIABLE.fullmatch(self.api_key_env)
            faults.append(
                f"the environment variable {self.api_key_env!r} named by api_key_env is not set"
                if named
                else "api_key_env has to be the name of an environment variable that is set, such as OPENAI_API_KEY; what is "
                "given is none, and is not repeated here, for it may be the key itself"
            )
        if faults:
            raise ConfigurationError(f"{environment}: llm: {faults[0]}")


@dataclass(frozen=True)
class Ending:
    """What an end marker says: `bought`, and the text after it (a product, a price)."""

    bought: bool
    detail: str


@dataclass(frozen=True)
class Role:
    """What an environment adds to an LLM user.

    `persona`: its system prompt. `settle(ending, said)`: the outcome, given everything that was said to and by the LLM
    (raises DataError where that contradicts the ending). `nothing`: the outcome of a conversation without an ending.
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
        """The LLM's first message. Raises DataError where it ends the conversation with it."""
        text, ending = self._ask(_CALL)
        if ending is not None:
            raise DataError("the LLM user ended the conversation with its first message; its persona is not followed")
        return text

    def reply(self, response: str) -> Reply:
        """The LLM's answer. Raises EngineError where the endpoint fails, DataError for an ending without sense."""
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

    def outcome(self) -> Outcome:
        """What the ending says, or nothing achieved."""
        return self._outcome

    def _ask(self, message: str) -> tuple[str, Ending | None]:
        readable = message.encode("utf-8", "replace").decode()
        self._said.append(("user", readable if readable.strip() else "(silence)"))
        content = complete(self._settings, self._role.persona, self._said, self._seed)
        text, ending = parse_ending(content)
        self._said.append(("assistant", text))
        return text, ending


def parse_ending(content: str) -> tuple[str, Ending | None]:
    """The words of a reply, and the ending its marker states. Raises DataError for a marker that cannot be read."""
    match = _MARKER.search(content)
    text = content[: match.start()].strip() if match else content.strip()
    if _TORN.search(text):
        raise DataError(
            f"the LLM user wrote an end marker that cannot be read, near {_TORN.split(text, 1)[1][:40]!r}; "
            "it has to close its message with [END: bought ...] or [END: left]"
        )
    if match is None:
        return text, None
    return text, Ending(match["event"].lower() == "bought", match["detail"].strip())


def complete(
    settings: LLMSettings, system: str, messages: list[tuple[str, str]], seed: int, who: str = "LLM user"
) -> str:
    """One chat completion; `messages` are (role, content). Raises EngineError, ConfigurationError if it is refused."""
    import openai

    chat: list[Any] = [{"role": "system", "content": system}]
    chat += [{"role": role, "content": content} for role, content in messages]
    where = f"the {who}'s endpoint {settings.base_url} (model {settings.model!r})"
    try:
        answer = _client(settings).chat.completions.create(
            model=settings.model,
            messages=chat,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            seed=seed % 2**31,
        )
        content = answer.choices[0].message.content
    except openai.APITimeoutError:
        raise EngineError(
            f"{where} gave no answer within {settings.timeout:g} s, {settings.retries + 1} times"
        ) from None
    except openai.APIStatusError as error:
        refused = error.status_code in (400, 401, 403, 404, 422)
        kind = ConfigurationError if refused else EngineError
        raise kind(f"{where} answered with HTTP status {error.status_code}") from None
    except (openai.OpenAIError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise EngineError(f"{where} cannot be used: {type(error).__name__}") from None
    if not isinstance(content, str) or not content.strip():
        raise EngineError(f"{where} answered without any text")
    return content[:LIMIT]


@functools.lru_cache(maxsize=8)
def _client(settings: LLMSettings) -> Any:
    """One client, with its connections, per settings and process."""
    import openai

    key = os.environ.get(settings.api_key_env or "") or "none"
    return openai.OpenAI(
        base_url=settings.base_url, api_key=key, timeout=settings.timeout, max_retries=settings.retries
    )
