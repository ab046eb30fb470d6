"""Preferences between two finished conversations on the same context: P(first ≻ second) (2405.14655 §3).

1. A preference is a number in [0, 1], and `prefer(second, first) == 1 - prefer(first, second)` holds to the last bit: it is
   made of a margin in [-½, ½] that changes its sign when the two are swapped, and `probability` rounds both alike.
2. `bradley_terry` makes a margin of a difference of rewards; an oracle that is not transitive makes its own.
3. `Noise` spoils margins: `expected` moves each towards ½ by the share of judges who err; `flipped` turns round that
   share of the pairs; `label` gives one judge's verdict, 0 or 1, drawn from what `expected` gives. What is drawn depends
   on the seed and on the two conversations alone (`identity`: their ids and words, because different policies' held-out
   conversations bear the same ids), so that a pair is judged alike whenever it is judged.
4. Preferences come from the environment (`Environment.prefer`), from an LLM (`mtrl_envs.llm.pair_judge`), from a trained model,
   or from a file of pairs that people judged (`mtrl_ray.feedback.pairs`). All but the file have the type `Prefer`.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mtrl_envs.base import Environment
from mtrl_envs.registry import ENVIRONMENTS, environment_class
from mtrl_envs.scripted.options import share
from mtrl_ray.dialogue.conversation import Conversation
from mtrl_ray.errors import ConfigurationError, DataError

Prefer = Callable[[Conversation, Conversation], float]
"""P(first ≻ second) of two finished conversations on the same context."""

Kind = Literal["expected", "flipped", "label"]


def probability(margin: float) -> float:
    """½ + `margin` for a margin in [-½, ½]; `probability(-m) == 1 - probability(m)`, exactly, both ways."""
    upper = 0.5 + abs(margin)  # in [½, 1], so that 1 - upper has no rounding error
    return upper if margin >= 0 else 1.0 - upper


def bradley_terry(difference: float) -> float:
    """The margin σ(`difference`) - ½ of two rewards that differ so much."""
    return math.copysign(0.5 * math.tanh(abs(difference) / 2), difference)


@dataclass(frozen=True)
class Noise:
    """`share` of the judgements is wrong, in the way that `kind` says; `seed` of what is drawn."""

    share: float = 0.0
    kind: Kind = "expected"
    seed: int = 0

    @classmethod
    def parse(cls, environment: str, noise: float, kind: str, seed: int) -> "Noise":
        """Checked options of an environment. Raises ConfigurationError."""
        given: Any = kind
        if given not in get_args(Kind):
            raise ConfigurationError(
                f"{environment}: preference_noise_kind is {kind!r}, use one of {', '.join(get_args(Kind))}"
            )
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigurationError(f"{environment}: preference_seed is {seed!r}, it has to be a whole number")
        return cls(share(environment, "preference_noise", noise), given, seed)

    def apply(self, margin: float, first: str, second: str) -> float:
        """The margin as the noisy judges give it; `first` and `second` identify the two conversations.

        One conversation against itself has a margin of 0 by all its judges.
        """
        spoilt = (1.0 - 2.0 * self.share) * margin
        if self.kind == "expected":
            return spoilt
        # The draw belongs to the pair: it is made for the smaller identity in front.
        low, high = sorted((first, second))
        drawn = uniform(f"{self.seed}/{self.kind}/{low}/{high}")
        if self.kind == "flipped":
            return -margin if drawn < self.share else margin
        if first == second:
            return 0.0
        ordered = spoilt if first == low else -spoilt
        verdict = 0.5 if drawn < probability(ordered) else -0.5
        return verdict if first == low else -verdict


def identity(conversation: Conversation) -> str:
    """What tells a conversation from any other: its id, and a digest of what was said."""
    words = "\0".join(f"{turn.role}\1{turn.text}\1{turn.sent}" for turn in conversation.turns)
    return f"{conversation.id}/{hashlib.blake2b(words.encode('utf-8', 'replace'), digest_size=8).hexdigest()}"


def uniform(text: str) -> float:
    """A number in [0, 1) that looks random, the same on every machine for the same text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def check_pair(environment: str, first: Conversation, second: Conversation) -> None:
    """Raise DataError if the two are not conversations of this environment on the same context."""
    for conversation in (first, second):
        if conversation.environment != environment:
            raise DataError(
                f"conversation {conversation.id!r} is of environment {conversation.environment!r}; "
                f"{environment!r} compares its own"
            )
    if (first.split, first.context_id) != (second.split, second.context_id):
        raise DataError(
            f"conversations {first.id!r} and {second.id!r} are on different contexts ({first.split} "
            f"{first.context_id!r} and {second.split} {second.context_id!r}); a preference is between two on the same one"
        )


def require_oracle(environment: Environment) -> Prefer:
    """The environment's oracle. Raises ConfigurationError if it has none: to be called before anything starts."""
    if type(environment).prefer is not Environment.prefer:
        return environment.prefer
    having = [known for known in sorted(ENVIRONMENTS) if environment_class(known).prefer is not Environment.prefer]
    raise ConfigurationError(
        f"environment {environment.name!r} has no preference oracle; {' and '.join(having)} have one, "
        "or take preferences from an LLM judge or from a file of pairs"
    )
