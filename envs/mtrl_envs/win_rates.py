"""How often conversations of one agent are preferred to those of another, on the same contexts.

1. Both sides hold conversations on the same contexts; only conversations on one context are compared. If a side has
   several there, each of one is compared with each of the other.
2. A context's win rate is the mean preference of these comparisons; the win rate is the mean over contexts. Its interval
   is over what the contexts were made from (`Context.source`); comparisons on one context are never independent.
3. `win_rate(b, a)` is 1 - `win_rate(a, b)`, interval included.
"""

from collections import defaultdict
from collections.abc import Iterable

from mtrl_envs.base import Environment
from mtrl_envs.measure import conversations, source_of
from mtrl_envs.preferences import Prefer, require_oracle
from mtrl_ray.dialogue.conversation import Conversation
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.statistics.estimates import Estimate, mean_interval

Key = tuple[str, str]
"""A context: its split and its id."""


def scripted_win_rate(
    environment: Environment, agent: str, opponent: str, contexts: int, split: str = "test", seed: int = 0
) -> Estimate:
    """Win rate of a scripted agent over another by the environment's oracle. Raises ConfigurationError without one."""
    prefer = require_oracle(environment)
    first, second = (conversations(environment, name, contexts, split, seed) for name in (agent, opponent))
    return win_rate(first, second, prefer)


def win_rate(first: Iterable[Conversation], second: Iterable[Conversation], prefer: Prefer) -> Estimate:
    """Mean P(conversation of `first` ≻ conversation of `second`), with its 95 % interval over contexts, within [0, 1]."""
    ours = list(first)
    rates = context_win_rates(ours, second, prefer)
    if not rates:
        raise ConfigurationError("a win rate needs at least one conversation of either side, 0 were given")
    made_from = {(one.split, one.context_id): source_of(one) for one in ours}
    return mean_interval(list(rates.values()), clusters=[made_from[key] for key in rates])


def context_win_rates(
    first: Iterable[Conversation], second: Iterable[Conversation], prefer: Prefer
) -> dict[Key, float]:
    """The win rate on each context. Raises DataError if a context is on one side only."""
    ours, theirs = _by_context(first), _by_context(second)
    single = sorted(set(ours) ^ set(theirs))
    if single:
        raise DataError(
            f"{len(single)} contexts are on one side of the comparison only, for example {single[0][1]!r} of split "
            f"{single[0][0]!r}; a win rate needs conversations of both sides on the same contexts"
        )
    return {key: _mean([prefer(one, other) for one in ours[key] for other in theirs[key]]) for key in ours}


def _by_context(conversations: Iterable[Conversation]) -> dict[Key, list[Conversation]]:
    found: dict[Key, list[Conversation]] = defaultdict(list)
    for conversation in conversations:
        found[conversation.split, conversation.context_id].append(conversation)
    return dict(found)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
