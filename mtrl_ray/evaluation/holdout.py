"""Held-out evaluation: the policy, and the scripted agents, on the same contexts of the test split."""

import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from mtrl_envs import measure
from mtrl_envs.base import Environment
from mtrl_envs.driver import is_well_formed, make_context
from mtrl_envs.measure import mean_score as measured
from mtrl_ray.dialogue.conversation import Conversation, from_table, sources
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.processes.deadlines import Calls, Late
from mtrl_ray.processes.failures import Failure, causes, stop_at_too_many
from mtrl_ray.processes.writing import writing
from mtrl_ray.rollout.lease import make_leases
from mtrl_ray.statistics.estimates import Estimate, mean_interval

if TYPE_CHECKING:
    from mtrl_ray.settings.tree import RolloutSettings
    from mtrl_ray.system.system import System

logger = logging.getLogger(__name__)

TEST_TAG = 0
"""Takes the iteration's place in held-out identities and seeds: the same users meet every policy."""


def evaluate(system: "System", contexts: int, greedy: bool = False) -> tuple[Estimate, pa.Table]:
    """Mean score of the newest policy over the first `contexts` test contexts, and the conversations.

    greedy: with the likeliest tokens in place of sampled ones, on the same contexts and with the same users. It shows what a
    policy can do although it samples other things as well.
    """
    leases = make_leases(system.settings.run.seed, "test", TEST_TAG, range(contexts))
    if greedy:
        leases = [replace(lease, temperature=0.0) for lease in leases]
    table = system.evaluation_rollouts_of(leases)
    return mean_score(table), table


def mean_score(table: pa.Table) -> Estimate:
    """Mean score of these conversations; those of one source are a cluster."""
    return mean_interval(table["score"].to_numpy(), clusters=sources(table))


def baselines(
    environment: Environment, contexts: int, rollout: "RolloutSettings", split: str = "test"
) -> dict[str, Estimate]:
    """Mean scores of the scripted agents that the environment has, by name (`scripted`)."""
    return {
        agent: scripted(environment, agent, contexts, rollout, split) for agent in measure.scripted_agents(environment)
    }


def scripted(
    environment: Environment, agent: str, contexts: int, rollout: "RolloutSettings", split: str = "test"
) -> Estimate:
    """Mean score of a scripted agent over the same contexts, as in the policy's own evaluation (`scripted_conversations`)."""
    return measured(scripted_conversations(environment, agent, contexts, rollout, split))


def scripted_conversations(
    environment: Environment,
    agent: str,
    contexts: int,
    rollout: "RolloutSettings",
    split: str,
    shares: Mapping[str, float] | None = None,
) -> list[Conversation]:
    """Conversations of a scripted agent, or of a mixture (`shares`), on the first contexts of a split, in their order.

    Users that wait for a network run side by side (`rollout.concurrency`); a conversation that fails, for whatever reason,
    is tried again (`rollout.retries`), then left out, counted and named in the log. A conversation may take
    `rollout.user_seconds`, one with users behind a network as long for each turn; a late one is not tried again.
    Raises EngineError or DataError if more than a share of `rollout.data_errors` is left out.
    """
    tries, blocking = rollout.retries + 1, environment.blocking
    calls = Calls(rollout.user_seconds * (environment.turn_limit + 1 if blocking else 1))

    def talk(index: int) -> Conversation:
        return measure.rollout(environment, make_context(environment, split, index), agent, seed=0, shares=shares)

    def held(index: int) -> Conversation | Failure:
        failure = Failure(f"{agent}/{split}/{index}", "", "")
        for _ in range(tries):
            try:
                return calls.run(f"{environment.name}: conversation {failure.id} with its user", talk, index)
            except ConfigurationError:
                raise
            except Late as error:
                return Failure.of(failure.id, error)
            except Exception as error:  # whatever a user raises
                failure = Failure.of(failure.id, error)
        return failure

    with ThreadPoolExecutor(rollout.concurrency if blocking else 1) as pool:
        found = list(pool.map(held, range(contexts)))
    failed = [one for one in found if isinstance(one, Failure)]
    work = f"conversations of the agent {agent!r}"
    stop_at_too_many(failed, contexts, rollout.data_errors, work, tries)
    if failed:
        logger.warning("%d of %d %s are left out: %s", len(failed), contexts, work, causes(failed))
    return [one for one in found if isinstance(one, Conversation)]


def well_formed(environment: Environment, table: pa.Table) -> Estimate:
    """Share of the agent's turns that are well-formed messages of the environment; `n` counts turns.

    The turns of one conversation, and of conversations of one source, are a cluster. Raises DataError if there are none.
    """
    talks = from_table(table)
    agents = [talk.turns[place] for talk in talks for place in talk.agent_turns]
    if not agents:
        raise DataError(
            f"none of {len(talks)} conversations of environment {environment.name!r} has a turn of the agent: its users ended "
            "them in their openings, so there is nothing to learn from"
        )
    clusters = [name for name, talk in zip(sources(table), talks, strict=True) for _ in talk.agent_turns]
    return mean_interval([float(is_well_formed(environment, turn.text)) for turn in agents], clusters=clusters)


def keep(folder: Path, name: str, table: pa.Table) -> None:
    """Write held-out conversations to `evaluation/NAME.parquet` of a run's folder. Raises EngineError."""
    path = folder / "evaluation" / f"{name}.parquet"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)


def summarise(folder: Path, **estimates: Estimate) -> dict[str, dict[str, float]]:
    """Add estimates to `summary.json` of a run's folder; all of what it then holds. Raises EngineError."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text()) if path.is_file() else {}
    summary |= {name: estimate.as_dict() for name, estimate in estimates.items()}
    temporary = path.with_name(f".{path.name}.writing")
    with writing(path):
        temporary.write_text(json.dumps(summary, indent=1))
        temporary.replace(path)
    return summary
