"""One policy improvement on whole conversations: token advantages in, policy steps out.

Who earned what is decided elsewhere (`credit`, or an algorithm of your own): this file takes advantages of all agent
tokens and runs `updates` on them, every conversation one row with all its turns.
"""

import time

import numpy as np

from mtrl_ray.errors import DataError
from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.methods.updates import PolicySteps, means, measure
from mtrl_ray.learner.rows.batch import Batch, lengths_of
from mtrl_ray.learner.specification import ConversationImprovement


def improve_conversations(
    core: Core, batch: Batch, advantages: np.ndarray, spec: ConversationImprovement
) -> dict[str, float]:
    """Improve the policy; `advantages` float32 [agent tokens]. Returns what `Learner.improve_conversations` says."""
    started = time.perf_counter()
    if len(advantages) != len(batch.logprobs) or not np.isfinite(advantages).all():
        raise DataError(
            f"{len(batch.logprobs)} agent tokens need as many finite advantages; {len(advantages)} were given"
        )
    rows, alike = batch.token_rows, lengths_of(batch, spec.aggregation)
    measured = measure(core, rows, batch.logprobs, batch.versions, spec)
    steps = PolicySteps(
        core, rows, measured, core.tensor(advantages), None if alike is None else core.tensor(alike), spec
    )
    history = steps.run("improve_conversations")
    trained = sum(step.pop("tokens") for step in history)
    seconds = time.perf_counter() - started
    return means(history) | {
        "score": float(batch.scores.mean()),
        "score_deviation": float(batch.scores.std()),
        "advantage_deviation": float(np.std(advantages)),
        "importance_weight": float(measured.weights.mean()),
        "conversations": float(len(batch)),
        "groups": float(len(np.unique(batch.groups))),
        "policy_steps": float(sum("policy_loss" in step for step in history)),
        "trained_tokens": float(trained),
        "seconds": seconds,
        "tokens_per_second": trained / seconds,
    }
