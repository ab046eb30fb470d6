"""Chat completions of any OpenAI-compatible endpoint, for users and judges that an LLM plays.

1. `complete` may be called by any number of threads: one event loop per process holds all requests.
2. A request has to be answered as a whole within `timeout`, however slowly its bytes arrive; then it is tried again, as
   after a passing failure (429, 5xx, no connection), with growing pauses, `retries` times.
3. An endpoint that is away, or answers nothing, is an `EngineError`. One that refuses the request itself (400, 422: too long,
   filtered) is a `DataError`: another conversation may be accepted. One that refuses every request (401, 403, 404) is a
   `ConfigurationError`.
4. The API key is read from the environment variable whose name is given, and appears in no message of this module.
"""

import asyncio
import functools
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import httpx

from mtrl_ray.errors import ConfigurationError, DataError, EngineError

_CREDENTIALS = re.compile(r"^\w+://[^/]*@|\?")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_REFUSED = {400: DataError, 413: DataError, 422: DataError}
_FORBIDDEN = (401, 403, 404)
_REASON = 200
"""Characters shown of why an endpoint refused a request."""
_loops: list[asyncio.AbstractEventLoop] = []
_starting = threading.Lock()


@dataclass(frozen=True)
class LLMSettings:
    """Where the LLM is and how it is asked.

    `timeout`: seconds in which a request has to be answered as a whole; `retries`: after the first try, of a request that
    was not answered or met a passing failure; `max_tokens`: of an answer.
    """

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


JUDGE: dict[str, Any] = {"max_tokens": 1024}
"""What a judge needs in place of a user's defaults: room to think before it answers."""


def complete(
    settings: LLMSettings, system: str, messages: list[tuple[str, str]], seed: int, who: str = "LLM user"
) -> str:
    """One chat completion; `messages` are (role, content). Raises EngineError, DataError, ConfigurationError (rule 3)."""
    import openai

    chat = [{"role": "system", "content": system}]
    chat += [{"role": role, "content": content} for role, content in messages]
    where = f"the {who}'s endpoint {settings.base_url} (model {settings.model!r})"
    try:
        content = asyncio.run_coroutine_threadsafe(_ask(settings, chat, seed % 2**31), _loop()).result()
    except openai.APITimeoutError:
        raise EngineError(
            f"{where} gave no answer within {settings.timeout:g} s, {settings.retries + 1} times"
        ) from None
    except openai.APIStatusError as error:
        status = f"{where} answered with HTTP status {error.status_code}"
        if error.status_code in _REFUSED:
            raise DataError(f"{status}: {_reason(error.message, settings)}") from None
        raise (ConfigurationError if error.status_code in _FORBIDDEN else EngineError)(status) from None
    except (openai.OpenAIError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise EngineError(f"{where} cannot be used: {type(error).__name__}") from None
    if not isinstance(content, str) or not content.strip():
        raise EngineError(f"{where} answered without any text")
    return content


async def _ask(settings: LLMSettings, chat: list[Any], seed: int) -> object:
    answer = await _client(settings).chat.completions.create(
        model=settings.model,
        messages=chat,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        seed=seed,
    )
    return answer.choices[0].message.content


def _reason(message: str, settings: LLMSettings) -> str:
    """Why a request was refused, without the key, should the endpoint repeat it."""
    key = os.environ.get(settings.api_key_env or "")
    said = " ".join((message.replace(key, "***") if key else message).split())
    return said[:_REASON]


class _WholeAnswer(httpx.AsyncHTTPTransport):
    """Bounds the time until the last byte of an answer; httpx alone bounds the time between two of them."""

    def __init__(self, seconds: float) -> None:
        super().__init__(limits=httpx.Limits(max_connections=None, max_keepalive_connections=256))
        self._seconds = seconds

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            async with asyncio.timeout(self._seconds):
                response = await super().handle_async_request(request)
                try:
                    await response.aread()
                except BaseException:
                    await response.aclose()
                    raise
                return response
        except TimeoutError:
            raise httpx.ReadTimeout("the answer is not complete", request=request) from None


@functools.lru_cache(maxsize=8)
def _client(settings: LLMSettings) -> Any:
    """One client, with its connections, per settings and process."""
    import openai

    key = os.environ.get(settings.api_key_env or "") or "none"
    transport = httpx.AsyncClient(transport=_WholeAnswer(settings.timeout), timeout=settings.timeout)
    return openai.AsyncOpenAI(
        base_url=settings.base_url, api_key=key, max_retries=settings.retries, http_client=transport
    )


def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of this process's requests, on a thread of its own."""
    with _starting:
        if not _loops:
            _loops.append(asyncio.new_event_loop())
            threading.Thread(target=_loops[0].run_forever, name="completions", daemon=True).start()
    return _loops[0]
