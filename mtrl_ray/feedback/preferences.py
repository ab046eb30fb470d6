"""Pairs of conversations with their preferences, made in parallel with the learner.

1. A pair is two conversations on one context of one iteration; `Pairing` says which. A conversation whose partner
   failed is left out; so is a pair that could not be compared (the endpoint is away or refuses it, the answer is unusable,
   the judge raises), counted with its cause. Neither becomes a ½. If too many could not be, `compare` raises (`failures`).
2. `compared` gives the pairs' table, both members of a pair next to each other, and one number for each conversation:
   the probability that it is preferred to its partner. The two numbers of a pair sum to 1.
3. `PreferenceSettings` says who compares.
4. `flip` turns a share of the pairs round (`mtrl_envs.preferences.Noise`): what is drawn depends on the run's seed and on the
   pair alone.
"""

from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from mtrl_envs.llm.completions import JUDGE, LLMSettings
from mtrl_envs.llm.pair_judge import LLMPairJudge
from mtrl_envs.preferences import Noise, Prefer, probability, require_oracle
from mtrl_envs.registry import environment_class, make
from mtrl_ray.dialogue.conversation import Conversation, from_table
from mtrl_ray.errors import DataError
from mtrl_ray.processes.failures import Failure, attempt, causes, stop_at_too_many
from mtrl_ray.processes.refs import Ref
from mtrl_ray.processes.small_tasks import small_task
from mtrl_ray.rollout.lease import derive_seed
from mtrl_ray.settings.section import Section
from mtrl_ray.settings.tree import EnvironmentSettings, RolloutSettings

if TYPE_CHECKING:
    from mtrl_ray.system.system import System

Numbers = dict[str, float]
Pairing = Literal["every", "across"]
"""Which conversations of a context are pairs: every two; or every even sample, first, with every odd one. Of more than two
samples, each is in several pairs, and `averaged` makes one number of them."""


class PreferenceSettings(Section):
    """The source of preferences between two conversations."""

    source: Literal["oracle", "llm"] = "oracle"
    """`oracle`: the environment's own; `llm`: an LLM reads both, in either order."""
    llm: dict[str, Any] | None = None
    """Of the source `llm`: base_url, model, and the other keys of an LLM user's settings."""
    criterion: str | None = None
    """Of the source `llm`: what makes a conversation better; None: the environment's own (`Environment.criterion`)."""
    flip: float = Field(0.0, ge=0, le=0.5)
    """Share of the pairs whose preference is turned round."""

    @model_validator(mode="after")
    def _possible(self) -> "PreferenceSettings":
        if (self.source == "llm") != (self.llm is not None):
            needs = "needs llm with at least base_url and model" if self.source == "llm" else "takes no llm settings"
            raise ValueError(f"source is {self.source}, which {needs}")
        return self

    def judge(self, environment: EnvironmentSettings) -> Prefer:
        """The judge. Raises ConfigurationError if the environment has no oracle, or for unusable LLM settings."""
        if self.llm is not None:
            own = environment_class(environment.name).criterion
            criterion = own if self.criterion is None else self.criterion
            return LLMPairJudge(LLMSettings.parse("preferences", JUDGE | self.llm), criterion).prefer
        return require_oracle(make(environment.name, **environment.options))


def pair_up(system: "System", conversations: Ref[pa.Table], pairing: Pairing = "every") -> Ref[pa.Table]:
    """Those of the conversations that have a partner on their context, pair after pair. Returns at once."""
    table, numbers = paired.remote(conversations, pairing)
    system.record("preferences", numbers)
    pairs: Ref[pa.Table] = table
    return pairs


def compare_pairs(
    system: "System", pairs: Ref[pa.Table], settings: PreferenceSettings
) -> tuple[Ref[pa.Table], Ref[np.ndarray]]:
    """The pairs that could be compared, and each conversation's probability to be preferred. Returns at once."""
    system.view.part("rollout", f"comparing conversations ({settings.source})")
    run = system.settings
    seed = derive_seed(run.run.seed, "flip")
    table, preferred, numbers, failures = compared.remote(pairs, settings, run.environment, seed, run.rollout)
    system.record("preferences", numbers)
    system.record_failures("comparing conversations", failures)
    return table, preferred


@small_task(num_returns=2)
def paired(conversations: pa.Table, pairing: Pairing) -> tuple[pa.Table, Numbers]:
    """`pairs_of` as a task: the pairs' table, how many `pairs` there are, and how many conversations are `unpaired`."""
    table = pairs_of(conversations, pairing)
    known = pc.count_distinct(table["id"]).as_py()
    return table, {"pairs": table.num_rows / 2, "unpaired": float(conversations.num_rows - known)}


def scored(system: "System", table: Ref[pa.Table], values: Ref[np.ndarray]) -> tuple[Ref[pa.Table], Ref[np.ndarray]]:
    """The rows whose value is a number, and these values; the others were too long for a model to read, and are counted."""
    rows, numbers, counts = _scored.remote(table, values)
    system.record("preferences", counts)
    return rows, numbers


@small_task(num_returns=3)
def _scored(table: pa.Table, values: np.ndarray) -> tuple[pa.Table, np.ndarray, Numbers]:
    known = np.isfinite(values)
    if not known.any():
        raise DataError(
            f"all {len(values)} of an iteration's conversations or responses are too long for the model of preferences"
        )
    kept = table if known.all() else table.filter(pa.array(known))
    return kept, values[known], {"too_long": float((~known).sum())}


def averaged(pairs: Ref[pa.Table], values: Ref[np.ndarray]) -> tuple[Ref[pa.Table], Ref[np.ndarray]]:
    """Each conversation once, with the mean of its values over the pairs that it is in."""
    table, means = _averaged.remote(pairs, values)
    return table, means


@small_task(num_returns=2)
def _averaged(pairs: pa.Table, values: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    return mean_values(pairs, values)


def mean_values(pairs: pa.Table, values: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    """The conversations in the order in which they first occur, and float32 [conversations] means of their values."""
    known, place = pairs["id"].to_pylist(), dict[str, int]()
    number = np.array([place.setdefault(name, len(place)) for name in known])
    means = np.bincount(number, weights=values) / np.bincount(number)
    first = np.unique(number, return_index=True)[1]
    return pairs.take(pa.array(first)), means.astype(np.float32)


def first_members(pairs: Ref[pa.Table], preferred: Ref[np.ndarray]) -> tuple[Ref[pa.Table], Ref[np.ndarray]]:
    """The first conversation of each pair, and its probability to be preferred."""
    table, probabilities = _first_members.remote(pairs, preferred)
    return table, probabilities


@small_task(num_returns=2)
def _first_members(pairs: pa.Table, preferred: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    return pairs.take(pa.array(range(0, pairs.num_rows, 2))), preferred[::2]


@small_task(num_returns=4)
def compared(
    pairs: pa.Table,
    settings: PreferenceSettings,
    environment: EnvironmentSettings,
    seed: int,
    rollout: RolloutSettings,
) -> tuple[pa.Table, np.ndarray, Numbers, str]:
    """`compare` as a task; `seed` of what is flipped."""
    noise = Noise(settings.flip, "flipped", seed)
    return compare(pairs, settings.judge(environment), noise, rollout)


def pairs_of(conversations: pa.Table, pairing: Pairing = "every") -> pa.Table:
    """The conversations that have a partner, pair after pair in the order of their first members: of `every` the lower
    sample, of `across` the even one.

    Raises DataError if there is no pair at all.
    """
    names = ("environment", "iteration", "split", "context_id", "sample")
    keys = list(zip(*(conversations[name].to_pylist() for name in names), strict=True))
    groups: dict[tuple[object, ...], dict[int, int]] = defaultdict(dict)
    for row, (*group, sample) in enumerate(keys):
        groups[tuple(group)][sample] = row
    rows = [
        partner
        for *group, sample in keys
        for other in _partners(sample, groups[tuple(group)], pairing)
        for partner in (groups[tuple(group)][sample], groups[tuple(group)][other])
    ]
    if not rows:
        raise DataError(
            f"none of {len(keys)} conversations has a partner on its context; preferences need two conversations per context"
        )
    return conversations.take(pa.array(rows))


def _partners(sample: int, present: Collection[int], pairing: Pairing) -> list[int]:
    """The samples that come second in the pairs whose first one is `sample`, among those that are there."""
    if pairing == "every":
        return sorted(other for other in present if other > sample)
    return [] if sample % 2 else sorted(other for other in present if other % 2)


def compare(
    pairs: pa.Table, prefer: Prefer, noise: Noise, rollout: RolloutSettings
) -> tuple[pa.Table, np.ndarray, Numbers, str]:
    """The pairs that could be compared, float32 [conversations] probabilities to be preferred, numbers, causes of failures.

    pairs: as `pairs_of` gives them. Of rollout: `concurrency`, `retries` (how often a judge that failed is asked again),
    `data_errors`. Numbers: `compared`, `failed`, `flipped` (pairs), `decided` (mean |P - ½| of the pairs, times 2). Raises
    DataError or EngineError if too many could not be compared.
    """
    talks = from_table(pairs)
    both = list(zip(talks[::2], talks[1::2], strict=True))
    with ThreadPoolExecutor(max_workers=rollout.concurrency, thread_name_prefix="judge") as pool:
        answers = list(pool.map(lambda pair: _ask(prefer, pair[0], pair[1], rollout.retries), both))
    failed = [answer for answer in answers if isinstance(answer, Failure)]
    stop_at_too_many(failed, len(both), rollout.data_errors, "comparisons of conversations", rollout.retries + 1)
    told = [(pair, answer) for pair, answer in zip(both, answers, strict=True) if not isinstance(answer, Failure)]
    margins = [answer - 0.5 for _, answer in told]
    noisy = [
        noise.apply(margin, first.id, second.id) for margin, ((first, second), _) in zip(margins, told, strict=True)
    ]
    found = np.array([[probability(margin), probability(-margin)] for margin in noisy], dtype=np.float32).ravel()
    kept = np.repeat([not isinstance(answer, Failure) for answer in answers], 2)
    numbers = {
        "compared": float(len(told)),
        "failed": float(len(failed)),
        "flipped": float(sum(clean * spoilt < 0 for clean, spoilt in zip(margins, noisy, strict=True))),
        "decided": float(np.mean(np.abs(noisy)) * 2),
    }
    return pairs.filter(pa.array(kept)), found, numbers, causes(failed)


def _ask(prefer: Prefer, first: Conversation, second: Conversation, retries: int) -> float | Failure:
    """P(first ≻ second), or the cause of failure after `retries` more tries."""

    def preference(trial: int) -> float:
        answer = prefer(first, second)
        if not 0.0 <= answer <= 1.0:
            raise DataError(f"the preference is {answer}; it has to lie in [0, 1]")
        return answer

    return attempt(f"{first.id} and {second.id}", preference, retries)
