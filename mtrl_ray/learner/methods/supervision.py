"""Supervised training on the agent's tokens: how a model learns to speak before reinforcement learning starts.

The loss of a step is the mean negative log-likelihood over the minibatch's agent tokens. Its optimiser is its own
and is let go at the end: the moments of imitation are no start for improvement. The policy that comes out is the new
`initial` reference.
"""

import time
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from mtrl_ray.errors import DataError
from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.compute.optimisation import Optimiser, warmup_cosine
from mtrl_ray.learner.compute.passes import LossFunction, Outputs, Step
from mtrl_ray.learner.rows.microbatches import balance
from mtrl_ray.learner.rows.packing import Rows, turn_tokens
from mtrl_ray.learner.rows.tables import Dialogues
from mtrl_ray.learner.specification import Supervision


def supervise(core: Core, dialogues: Dialogues, spec: Supervision) -> dict[str, float]:
    """Train the policy on the agent's tokens. See `Learner.supervise` for what it returns."""
    started = time.perf_counter()
    rows = turn_tokens(dialogues)
    if not len(rows):
        raise DataError("none of the conversations has an agent turn with tokens; there is nothing to imitate")
    parts = -(-len(rows) // spec.minibatch_conversations)
    steps = spec.steps or parts * spec.epochs
    optimiser = Optimiser(core.models.policy, weight_decay=spec.weight_decay)
    losses: list[float] = []
    tokens = skipped = 0.0
    for number, selection in zip(range(steps), _minibatches(core, rows, parts), strict=False):
        if spec.seconds is not None and core.passes.collective.any(time.perf_counter() - started > spec.seconds):
            break
        items = rows.items_of(selection)
        rate = spec.learning_rate * warmup_cosine((number + 1) / steps, spec.warmup)
        statistics = core.passes.update(
            core.models.policy, optimiser, rows, selection, likelihood(len(items)), Step(rate, spec.max_gradient_norm)
        )
        losses.append(statistics["loss"])
        tokens += len(items)
        skipped += statistics["skipped"]
    core.policy_steps += len(losses)
    core.forget_reference()
    core.models.reset_optimiser("policy")
    seconds = time.perf_counter() - started
    last = losses[-max(1, len(losses) // 10) :]
    return {
        "first_loss": losses[0] if losses else float("nan"),
        "loss": float(np.mean(last)) if last else float("nan"),
        "steps": float(len(losses)),
        "skipped": skipped,
        "trained_tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
    }


def likelihood(count: int) -> LossFunction:
    """Negative log-likelihood per token, a mean over the minibatch's `count` tokens, in nats."""

    def loss(outputs: Outputs, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        total = -outputs["logprobs"].sum() / count
        return total, {"loss": total}

    return loss


def _minibatches(core: Core, rows: Rows, parts: int) -> Iterator[np.ndarray]:
    """Minibatches of pass after pass, each pass in an order of its own."""
    while True:
        yield from balance(rows, core.generator("supervise").permutation(rows.unit), parts)
