"""Held-out evaluation: the policy, and the scripted agents, on the same contexts of the test split."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from mtrl_envs.base import Environment
from mtrl_envs.measure import converse
from mtrl_ray.dialogue.conversation import from_table, sources
from mtrl_ray.errors import DataError, EngineError
from mtrl_ray.processes.writing import writing
from mtrl_ray.statistics.estimates import Estimate, mean_interval

if TYPE_CHECKING:
    from mtrl_ray.settings.tree import RolloutSettings
    from mtrl_ray.system.system import System

SCRIPTED = ("expert", "greedy", "random")
TEST_TAG = 0
"""Takes the iteration's place in held-out identities and seeds: the same users meet every policy."""


def evaluate(system: "System", contexts: int) -> tuple[Estimate, pa.Table]:
    """Mean score of the newest policy over the first `contexts` test contexts, and the conversations."""
    table = system.evaluation_rollouts("test", range(contexts), tag=TEST_TAG)
    return mean_score(table), table


def mean_score(table: pa.Table) -> Estimate:
    """Mean score of these conversations; those of one source are a cluster."""
    return mean_interval(table["score"].to_numpy(), clusters=sources(table))


def scripted(
    environment: Environment, agent: str, contexts: int, rollout: "RolloutSettings", split: str = "test"
) -> Estimate:
    """Mean score of a scripted agent over the same contexts.

    As in training: users that wait for a network are waited for side by side (`rollout.user_threads`), a conversation in
    which one does not answer is held again (`rollout.retries`), one whose data are wrong is left out, up to a share of
    `rollout.data_errors`. Raises the EngineError or DataError beyond.
    """

    def score(index: int) -> float | DataError:
        context, failed = environment.context(split, index), 0
        while True:
            try:
                return converse(environment, context, agent, seed=0).score
            except DataError as error:
                return error
            except EngineError:
                failed += 1
                if failed > rollout.retries:
                    raise

    with ThreadPoolExecutor(rollout.user_threads if environment.blocking else 1) as pool:
        found = list(pool.map(score, range(contexts)))
    wrong = [one for one in found if isinstance(one, DataError)]
    if len(wrong) > rollout.data_errors * contexts:
        raise wrong[0]
    return mean_interval([one for one in found if not isinstance(one, DataError)])


def well_formed(environment: Environment, table: pa.Table) -> Estimate:
    """Share of the agent's turns that are well-formed messages of the environment; `n` counts turns.

    The turns of one conversation, and of conversations of one source, are a cluster.
    """
    talks = from_table(table)
    agents = [talk.turns[place] for talk in talks for place in talk.agent_turns]
    clusters = [name for name, talk in zip(sources(table), talks, strict=True) for _ in talk.agent_turns]
    return mean_interval([float(environment.well_formed(turn.text)) for turn in agents], clusters=clusters)


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
