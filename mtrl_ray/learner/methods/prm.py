"""The implicit process reward model: learning from outcomes, and scoring tokens (2603.23550; 2502.01456).

1. It is a policy that starts as a copy of the reference, and stays a language model: an agent token's reward is
   `β [log π_φ - log π_ref]`. Both are read at temperature 1, whatever the sampler's.
2. `fit_prm` first predicts the batch, which it has not seen: its accuracies are those of unseen conversations. Then
   it takes its steps, and the batch is scored by what comes out.
3. The loss needs the sum over a whole conversation. A row is a whole conversation, so a micro-batch always has complete
   sums, however small it is.
"""

import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.compute.passes import LossFunction, Outputs, Step
from mtrl_ray.learner.methods.updates import means
from mtrl_ray.learner.rows.batch import Batch
from mtrl_ray.learner.rows.microbatches import balance
from mtrl_ray.learner.rows.tables import starts_of
from mtrl_ray.learner.specification import PRMFit
from mtrl_ray.objectives.turn_rewards import pair_accuracy, prm_loss, sign_accuracy


def fit_prm(core: Core, batch: Batch, spec: PRMFit) -> dict[str, float]:
    """Update the model on the task scores of these conversations. See `Learner.fit_prm` for what it returns."""
    started = time.perf_counter()
    rows, scores = batch.token_rows, core.tensor(batch.scores)
    learned, frozen = (core.evaluate(name, rows)["logprobs"] for name in ("prm", "reference"))
    before = _quality(batch, spec.beta * (learned - frozen))
    reference, conversation = core.tensor(frozen), core.tensor(batch.token_conversation)
    generator = core.generator("fit_prm")
    step = Step(spec.learning_rate, spec.max_gradient_norm)
    history = []
    for _ in range(spec.epochs):
        for selection in balance(rows, generator.permutation(np.unique(rows.unit)), spec.minibatches):
            loss = outcome_loss(reference, conversation, scores, len(selection), spec.beta)
            history.append(core.update("prm", rows, selection, loss, step))
    return means(history) | before | {"seconds": time.perf_counter() - started}


def implicit_rewards(core: Core, batch: Batch, beta: float) -> np.ndarray:
    """`β [log π_φ - log π_ref]` of every agent token, float32 [agent tokens]; zero before the first fit."""
    learned, frozen = (core.evaluate(name, batch.token_rows)["logprobs"] for name in ("prm", "reference"))
    return beta * (learned - frozen)


def score_turns(core: Core, batch: Batch, beta: float) -> pa.Table:
    """What the model gives every agent turn: columns conversation_id, turn, reward, token_rewards (list)."""
    rewards, ends = implicit_rewards(core, batch, beta), starts_of(batch.turn_lengths)
    return pa.table(
        {
            "conversation_id": pc.take(batch.dialogues.ids, pa.array(batch.turn_conversation)),
            "turn": batch.dialogues.agent_turn_numbers(),
            "reward": np.add.reduceat(rewards, ends[:-1]),
            "token_rewards": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(rewards)),
        }
    )


def require_prm(core: Core) -> None:
    """Raises ConfigurationError where the model has not been made."""
    if not core.models.has_prm():
        raise ConfigurationError("there is no process reward model yet; call fit_prm first")


def outcome_loss(reference: Tensor, conversation: Tensor, scores: Tensor, count: int, beta: float) -> LossFunction:
    """`prm_loss`, a mean over the minibatch's `count` conversations.

    `reference`: log π_ref, `conversation`: int64, both [agent tokens]; `scores`: [conversations].
    """

    def loss(outputs: Outputs, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        rewards = beta * (outputs["logprobs"] - reference[items])
        present, place = torch.unique(conversation[items], return_inverse=True)
        sums = torch.zeros(len(present), device=rewards.device).index_add(0, place, rewards)
        total = prm_loss(sums, scores[present]).sum() / count
        return total, {"loss": total}

    return loss


def _quality(batch: Batch, rewards: np.ndarray) -> dict[str, float]:
    """How well the model predicts these conversations' outcomes."""
    sums = torch.zeros(len(batch), dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(batch.token_conversation), torch.from_numpy(rewards).double())
    scores, groups = torch.from_numpy(batch.scores.copy()).double(), torch.from_numpy(batch.groups.copy())
    found = {
        "pair_accuracy": float(pair_accuracy(sums, scores, groups)),
        "sign_accuracy": float(sign_accuracy(sums, scores)),
        "sum_deviation": float(sums.std(correction=0)),
    }
    if sums.std() > 0 and scores.std() > 0:
        found["r"] = float(np.corrcoef(sums.numpy(), scores.numpy())[0, 1])
    return found
