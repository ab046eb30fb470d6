"""Evaluation of a policy on held-out contexts, compared with the environment's scripted agents."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from mtrl_envs.driver import make_context
from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import Conversation, from_table
from mtrl_ray.evaluation.holdout import baselines, mean_score
from mtrl_ray.evaluation.standalone import standalone_rollouts
from mtrl_ray.processes.session import connected
from mtrl_ray.settings.tree import Settings
from mtrl_ray.statistics.estimates import Estimate


@dataclass(frozen=True)
class Evaluation:
    """Mean scores with intervals by who spoke (`policy`, then the scripted agents), and what the policy said as a table."""

    scores: dict[str, Estimate]
    table: pa.Table

    @property
    def score(self) -> Estimate:
        """The policy's."""
        return self.scores["policy"]

    @property
    def conversations(self) -> list[Conversation]:
        """The policy's conversations, one per context that did not fail."""
        return from_table(self.table)


def evaluate_model(
    settings: Settings,
    model: Path,
    split: str,
    contexts: int,
    address: str | None = None,
    prepare_processes: Callable[[], object] | None = None,
) -> Evaluation:
    """The model (a folder or a name of the hub) and the scripted agents on the first `contexts` contexts of a split.

    Raises ConfigurationError for a split that the environment does not have, EngineError or DataError if too many
    conversations failed.
    """
    environment = make(settings.environment.name, **settings.environment.options)
    make_context(environment, split, 0)  # says which splits there are, before anything starts
    with connected(settings, address, prepare=prepare_processes):
        table = standalone_rollouts(settings, model, split, contexts)
    scores = {"policy": mean_score(table)}
    return Evaluation(scores | baselines(environment, contexts, settings.rollout, split), table)
