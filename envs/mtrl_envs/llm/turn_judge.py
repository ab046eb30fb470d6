"""Judges of turns: how much each of the agent's turns did for the outcome of a finished conversation.

1. `recorded_weights` reads the simulated user's own record (`conversation.GAIN` in its metrics): half of the weight goes
   to the turns that brought something out, in proportion; half to all turns alike, so that a turn that only used what
   the others brought out keeps a share.
2. `LLMJudge` asks an LLM behind any OpenAI-compatible endpoint. It reads the conversation with its outcome and ends with
   one number from 0 to 10 per agent turn. An answer without them is a `DataError`.
3. Weights sum to 1; where nothing mattered they are all alike.
"""

import re
from collections.abc import Sequence

from mtrl_envs.llm.completions import LLMSettings, complete
from mtrl_ray.dialogue.conversation import GAIN, Conversation, Role
from mtrl_ray.errors import DataError

EVEN_SHARE = 0.5
"""Share of the weight that `recorded_weights` gives to all turns alike."""

INSTRUCTION = (
    "You read a finished conversation between an assistant and a user, and its outcome from 0 (failure) to 1 (success). "
    "Judge how much each numbered assistant turn did for the outcome: 0 for a turn without use or a harmful one, 10 for the "
    "turn that mattered most. Think briefly, then end with one line of comma-separated numbers, one per assistant turn in "
    "order: WEIGHTS: w1, w2, ..."
)

_WEIGHTS = re.compile(r"WEIGHTS\W{0,6}[:=][\s\[({]*([0-9.,; \t]+)", re.IGNORECASE)
_SEPARATOR = re.compile(r"\s*[,;]\s*|\s+")
_MARKUP = re.compile(r"[*_`]|(?<=\d)\s?/\s?10\b")
"""Markdown around numbers, and "out of ten" behind one."""


def recorded_weights(conversation: Conversation) -> list[float]:
    """One weight per agent turn. Raises DataError if the conversation's user keeps no record."""
    turns = len(conversation.agent_turns)
    if turns and GAIN.format(0) not in conversation.metrics:
        raise DataError(
            f"conversation {conversation.id!r} of {conversation.environment!r} has no record of which turn mattered; "
            "use a judge whose source is 'llm', or another scheme"
        )
    gains = [max(conversation.metrics.get(GAIN.format(turn), 0.0), 0.0) for turn in range(turns)]
    if sum(gains) <= 0:
        return shares(gains)
    return [EVEN_SHARE / turns + (1 - EVEN_SHARE) * gain for gain in shares(gains)]


def shares(weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1, in proportion; all alike if they are all 0."""
    total = sum(weights)
    return [weight / total if total > 0 else 1 / len(weights) for weight in weights]


class LLMJudge:
    """See the module's docstring."""

    def __init__(self, settings: LLMSettings) -> None:
        self._settings = settings

    def weights(self, conversation: Conversation, seed: int) -> list[float]:
        """One weight per agent turn. Raises EngineError if the endpoint fails, DataError for an unusable answer."""
        if not conversation.agent_turns:
            return []
        answer = complete(self._settings, INSTRUCTION, [("user", transcript(conversation))], seed, "LLM judge")
        return shares(parse_weights(answer, len(conversation.agent_turns)))


def transcript(conversation: Conversation) -> str:
    """The conversation as the judge reads it: the agent's turns numbered from 1, the score at the end."""
    lines, number = [], 0
    for turn in conversation.turns:
        number += turn.role == Role.AGENT
        who = f"Assistant turn {number}" if turn.role == Role.AGENT else turn.role.value.capitalize()
        lines.append(f"{who}: {' '.join(turn.text.split())}")
    return "\n".join([*lines, f"Outcome: {conversation.score:.2f}"])


def parse_weights(answer: str, turns: int) -> list[float]:
    """The numbers of the last WEIGHTS line, whatever Markdown surrounds them.

    Raises DataError if they are not `turns` numbers from 0 to 10.
    """
    found = _WEIGHTS.findall(_MARKUP.sub("", answer))
    try:
        weights = [float(part) for part in _SEPARATOR.split(found[-1].strip(",; \t\n").rstrip("."))] if found else []
    except ValueError:
        weights = []
    if len(weights) != turns or not all(0 <= weight <= 10 for weight in weights):
        raise DataError(
            f"the LLM judge's answer has no {turns} numbers from 0 to 10 after WEIGHTS:, it ends {answer[-60:]!r}"
        )
    return weights
