"""An LLM that says which of two finished conversations is better, behind any OpenAI-compatible endpoint.

1. It reads both conversations and a criterion, and ends with a number from 0 (the second is far better) to 10.
2. It is asked twice, the conversations in either order, and the two answers are averaged: it has no favourite place. So
   `prefer(second, first) == 1 - prefer(first, second)`, exactly, as long as the endpoint answers the same request alike.
3. An answer without the number is asked for again with another seed, and a `DataError` after `tries`.
"""

import re

from mtrl_envs.llm.completions import LLMSettings, complete
from mtrl_envs.preferences import probability
from mtrl_ray.dialogue.conversation import Conversation, Role
from mtrl_ray.errors import ConfigurationError, DataError

INSTRUCTION = (
    "You compare two finished conversations, A and B, between an assistant and a user about the same task. {criterion} "
    "Judge the assistant's conduct over the whole conversation; its order and its length mean nothing by themselves. Think "
    "briefly, then end with one line: PREFERENCE: n, where n is a number from 0 (B is far better) over 5 (no difference) "
    "to 10 (A is far better)."
)

_PREFERENCE = re.compile(
    r"PREFERENCE\W{0,6}[:=]\W{0,6}(?:n\s*=\s*)?(?<![-−.\d])(\d{1,3}(?:\.\d{1,6})?)(?![\d.]*\d)", re.IGNORECASE
)


class LLMPairJudge:
    """See the module's docstring. `criterion`: what makes a conversation better, in one or two sentences."""

    def __init__(self, settings: LLMSettings, criterion: str, tries: int = 3, seed: int = 0) -> None:
        if not criterion.strip() or tries < 1:
            raise ConfigurationError(
                f"pair judge: criterion is {criterion!r} and tries {tries}; it needs a criterion and at least one try"
            )
        self._settings = settings
        self._instruction = INSTRUCTION.format(criterion=criterion.strip())
        self._tries = tries
        self._seed = seed

    def prefer(self, first: Conversation, second: Conversation) -> float:
        """P(first ≻ second). Raises EngineError if the endpoint fails, DataError for unusable answers."""
        if (first.split, first.context_id) != (second.split, second.context_id):
            raise DataError(
                f"conversations {first.id!r} and {second.id!r} are on different contexts ({first.context_id!r} and "
                f"{second.context_id!r}); a preference is between two on the same one"
            )
        there, back = self._ask(first, second), self._ask(second, first)
        return probability((there - back) / 20.0)

    def _ask(self, one: Conversation, other: Conversation) -> float:
        """How much better A is, from 0 to 10."""
        pair = f"Conversation A:\n{transcript(one)}\n\nConversation B:\n{transcript(other)}"
        for trial in range(self._tries):
            content = complete(self._settings, self._instruction, [("user", pair)], self._seed + trial, "LLM judge")
            answer = parse_preference(content)
            if answer is not None:
                return answer
        raise DataError(
            f"the LLM judge gave {self._tries} answers without a number from 0 to 10 after PREFERENCE:, "
            f"the last ends {content[-60:]!r}"
        )


def transcript(conversation: Conversation) -> str:
    """What was said, as the judge reads it: no system prompt, no outcome."""
    lines = []
    for turn in conversation.turns:
        if turn.role != Role.SYSTEM:
            who = "Assistant" if turn.role == Role.AGENT else "User"
            said = turn.text if turn.sent is None else f"{turn.text} (sent instead: {turn.sent})"
            lines.append(f"{who}: {' '.join(said.split())}")
    return "\n".join(lines)


def parse_preference(answer: str) -> float | None:
    """The number of the last PREFERENCE line, whatever Markdown surrounds it; None if there is none from 0 to 10."""
    found = _PREFERENCE.findall(answer)
    number = float(found[-1]) if found else None
    return number if number is not None and number <= 10 else None
