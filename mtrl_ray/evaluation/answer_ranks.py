"""How well Q ranks the answers that the policy samples in a state, by what comes of each.

1. Of the answers sampled in logged states those that differ (other token ids) are alternatives. States in which all are alike
   have nothing to rank. Others are drawn at random, until there are as many answers as may be continued.
2. Each answer is continued `REPEATS` times to the end by the policy that sampled it (`System.continued`), before that is
   improved. Chance after a state is common to the answers in it, if the users can draw it. What the conversations score is
   compared with Q (`statistics.ranking`). The learner may fit Q meanwhile.
3. `measurements` bounds the cost: continued conversations, half as long as others on average, are a given share of the
   collected ones. They are saved up until there are enough for a number worth reading.
4. Users behind a network are not asked: they do not repeat themselves, and their answers cost money.
"""

import time
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import sources
from mtrl_ray.errors import DataError
from mtrl_ray.evaluation.answers import chosen_answers, starts_of_answers
from mtrl_ray.learner.methods.q import ScoreResponses
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.processes.refs import Ref
from mtrl_ray.processes.small_tasks import small_task
from mtrl_ray.rollout.lease import derive_seed
from mtrl_ray.statistics.ranking import ranking

if TYPE_CHECKING:
    from mtrl_ray.system.logged import Logged
    from mtrl_ray.system.system import System

REPEATS = 4
"""Continuations of each answer."""
STATES = 16
"""States that a measurement is worth, if their answers all differ; fewer if that took more than `MOST_ITERATIONS`."""
MOST_ITERATIONS = 10
"""Between two measurements."""
FAMILY = "ranking"


def measurements(share: float, conversations: int, responses: int) -> tuple[int, int]:
    """(iterations from one measurement to the next, answers that one may continue); (0, 0) for never.

    share: of the collected conversations, `conversations` an iteration, with `responses` in a state.
    """
    if share <= 0 or responses < 2:
        return 0, 0
    continued = 2 * share * conversations
    every = min(ceil(STATES * responses * REPEATS / continued), MOST_ITERATIONS)
    return every, int(continued * every / REPEATS)


def measure(
    system: "System",
    logged: "Logged",
    responses: Ref[pa.Table],
    answers: int,
    scorer: Operation[np.ndarray] | None = None,
    *given: object,
) -> None:
    """Record the family `ranking` of this iteration, on about `answers` of the responses.

    responses: `System.respond` in states of `logged`, from the newest policy. scorer: an operation on conversations, responses
    and what is `given`; None: Q, as the learner's calls so far leave it. Nothing is recorded if the answers in each state are
    alike, or if too few users are restored, which is noted.
    """
    settings = system.settings
    environment = make(settings.environment.name, **settings.environment.options)
    if environment.blocking:
        return
    seed = derive_seed(settings.run.seed, FAMILY, logged.iteration)
    conversations, chosen = chosen_answers.remote(logged.table, responses, answers, seed)
    picked = system.fetch(chosen, "the answers to continue")
    if not picked.num_rows:
        return
    scores, _ = system.learn(scorer or ScoreResponses(), conversations, chosen, *given)
    starts = starts_of_answers(logged, system.fetch(conversations, "the conversations to continue"), picked)
    begun = time.perf_counter()
    try:
        outcomes = system.continued(starts, REPEATS, "common" if environment.redraws else "logged")
    except DataError as error:
        system.view.note(f"how Q ranks answers could not be measured in iteration {logged.iteration + 1}: {error}")
        return
    seconds = time.perf_counter() - begun
    system.record(FAMILY, _ranked.remote(conversations, chosen, scores, ray.put(outcomes), seconds))


def rank(conversations: pa.Table, answers: pa.Table, scores: np.ndarray, outcomes: pa.Table) -> Numbers:
    """The numbers of `statistics.ranking` in the family `ranking`, without those that nothing can say.

    answers: as `choose` gives them; scores: float32 [answers]; outcomes: as `System.continued` gives them, their starts
    the answers.
    """
    names, turns = answers["conversation_id"].to_pylist(), answers["turn"].to_pylist()
    places = {state: number for number, state in enumerate(dict.fromkeys(zip(names, turns, strict=True)))}
    source = dict(zip(conversations["id"].to_pylist(), sources(conversations), strict=True))
    repeats = 1 + (pc.max(outcomes["sample"]).as_py() or 0)
    table = np.full((len(names), repeats), np.nan)
    table[outcomes["start"].to_numpy(), outcomes["sample"].to_numpy()] = outcomes["score"].to_numpy()
    found = ranking(
        np.array([places[state] for state in zip(names, turns, strict=True)]),
        scores,
        table,
        np.array([source[name] for name in names]),
    )
    numbers = {
        "rank_correlation": found.rank_correlation,
        "top_1": found.top_1,
        "best_gain": found.best_gain,
        "slope": found.slope,
        "states": float(found.groups),
        "ranked_states": float(found.ranked),
        "answers": float(len(names)),
        "conversations": float(outcomes.num_rows),
    }
    if found.gain is not None:
        numbers |= {"gain": found.gain.mean, "gain_low": found.gain.low, "gain_high": found.gain.high}
    return {name: value for name, value in numbers.items() if value is not None and np.isfinite(value)}


@small_task()
def _ranked(
    conversations: pa.Table, answers: pa.Table, scores: np.ndarray, outcomes: pa.Table, seconds: float
) -> Numbers:
    """`rank` as a task."""
    return rank(conversations, answers, scores, outcomes) | {"seconds": seconds}
