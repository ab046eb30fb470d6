"""The text that a chat template adds around messages, found by rendering it with marker words.

- A template is probed, not parsed: conversations of marker words are rendered as text, and the text between two markers
  belongs to the template.
- All turns must have the same format. The text from an agent's turn to the next user's, and the text from a user's turn to the
  agent's, is compared between the first and later turns; a template that numbers its turns is refused.
- If a template has no system role, the system text and an empty line go before the first user message.
- Changes that a template makes to earlier turns later (dropping their reasoning, moving the system text) are ignored: a
  history is only appended to, so the state in which a turn was sampled never changes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from mtrl_ray.dialogue.conversation import Role
from mtrl_ray.errors import ConfigurationError

NAMES = {Role.SYSTEM: "system", Role.USER: "user", Role.AGENT: "assistant"}
"""Names of the roles in chat templates."""

S, U1, U2, U3, A1, A2 = "zqsystemqz", "zqfirstqz", "zqsecondqz", "zqthirdqz", "zqansweroneqz", "zqanswertwoqz"
ROLES = {S: Role.SYSTEM, U1: Role.USER, U2: Role.USER, U3: Role.USER, A1: Role.AGENT, A2: Role.AGENT}
PADDING = " \n"

Render = Callable[[Sequence[tuple[Role, str]], bool], str]
"""(messages, whether to add the generation prompt) → text. Raises TemplateError if the template refuses the messages."""


@dataclass(frozen=True)
class TemplateText:
    """The template's text, as strings with the names of special tokens.

    `first`: before a first user message without a system message. `system`: before and after a system text that a user
    message follows. `agent_first`, `system_agent_first`: the same if the agent speaks first (None: the template
    refuses). `turn`: from the end of an agent's text to the next user's. `close`: after a user's text if nothing is
    generated; `prompt`: if the agent is next. `lead`: text before an agent's text in addition to the generation
    prompt. `strips`: roles whose texts are stripped of surrounding white space.
    """

    first: str
    system: tuple[str, str]
    agent_first: str | None
    system_agent_first: tuple[str, str] | None
    turn: str
    close: str
    prompt: str
    lead: str
    strips: frozenset[Role]


def renderer(tokenizer: PreTrainedTokenizerBase) -> Render:
    """A function that renders messages with a tokenizer's chat template. Raises ConfigurationError if it has none."""
    if not tokenizer.chat_template:
        raise ConfigurationError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template; a conversational policy needs one "
            "(use an instruct model, or set tokenizer.chat_template)"
        )

    def render(messages: Sequence[tuple[Role, str]], generation_prompt: bool) -> str:
        listed = [{"role": NAMES[role], "content": text} for role, text in messages]
        return str(tokenizer.apply_chat_template(listed, tokenize=False, add_generation_prompt=generation_prompt))

    return render


def probe(render: Render) -> TemplateText:
    """Find the template's text. Raises ConfigurationError if turns differ in format or a message is lost."""
    first, prompt = _required(render, [U1])
    _, *short, short_prompt = _required(render, [U1, A1, U2])
    _, *long, long_prompt = _required(render, [U1, A1, U2, A2, U3])
    answer, turn = long[0], long[1]
    same = long[0] == long[2] == short[0] and long[1] == long[3] == short[1] and prompt == short_prompt == long_prompt
    with_system = _gaps(render, [S, U1])
    later = _gaps(render, [S, U1, A1, U2])
    if with_system is not None and later is not None:
        same = same and with_system[2] == prompt and later[3] == turn and later[4] == prompt
    if not same:
        raise ConfigurationError(
            "the chat template formats turns differently (a turn number, a date?); all turns have to "
            "have the same format, because a history is appended to and never rendered again"
        )
    _, close = _required(render, [U1], generation_prompt=False)
    lead = answer.removeprefix(prompt) if answer.startswith(prompt) else ""
    opening = prompt.removeprefix(close) if prompt.startswith(close) else prompt
    return TemplateText(
        first=first,
        system=(with_system[0], with_system[1]) if with_system else (first, "\n\n"),
        agent_first=_speaks_first(_gaps(render, [A1, U1]), opening, lead),
        system_agent_first=_system_speaks_first(_gaps(render, [S, A1, U1]), opening, lead),
        turn=turn,
        close=close,
        prompt=prompt,
        lead=lead,
        strips=_strips(render, with_system is not None),
    )


def _required(render: Render, contents: Sequence[str], generation_prompt: bool = True) -> list[str]:
    try:
        text = render([(ROLES[content], content) for content in contents], generation_prompt)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise ConfigurationError(f"the chat template cannot render a plain conversation: {error}") from error
    gaps = _split(text, contents)
    if gaps is None:
        raise ConfigurationError("the chat template drops, repeats or reorders messages of a plain conversation")
    return gaps


def _gaps(render: Render, contents: Sequence[str]) -> list[str] | None:
    """Like `_required`, but None if the template refuses these messages or reorders them."""
    try:
        return _split(render([(ROLES[content], content) for content in contents], True), contents)
    except (TemplateError, TypeError, ValueError, KeyError):
        return None


def _split(text: str, contents: Sequence[str]) -> list[str] | None:
    """The text before, between and after the contents; None if one is missing, repeated or out of order."""
    if any(text.count(content) != 1 for content in contents):
        return None
    gaps = []
    for content in contents:
        before, found, text = text.partition(content)
        if not found:
            return None
        gaps.append(before)
    return [*gaps, text]


def _speaks_first(gaps: list[str] | None, opening: str, lead: str) -> str | None:
    """The text before an agent's turn that opens the conversation, if it ends with the generation prompt; otherwise None."""
    if gaps is None or not opening:
        return None
    before = gaps[0].removesuffix(lead)
    return before if before.endswith(opening) else None


def _system_speaks_first(gaps: list[str] | None, opening: str, lead: str) -> tuple[str, str] | None:
    after = None if gaps is None else _speaks_first(gaps[1:], opening, lead)
    return None if gaps is None or after is None else (gaps[0], after)


def _strips(render: Render, has_system: bool) -> frozenset[Role]:
    contents = [S, U1, A1, U2] if has_system else [U1, A1, U2]
    text = render([(ROLES[content], PADDING + content + PADDING) for content in contents], True)
    strips = frozenset(ROLES[content] for content in contents if PADDING + content + PADDING not in text)
    return strips if has_system or Role.USER not in strips else strips | {Role.SYSTEM}
