"""The implicit process reward model: learning from outcomes, and scoring tokens (2603.23550; 2502.01456).

The model is a policy that starts as a copy of the reference, and stays a language model: an agent token's reward is `β [log
π_φ - log π_ref]`. Both are evaluated at temperature 1, whatever the sampler's.

`PRMFit` first predicts the batch before training on it, so its accuracies are for unseen conversations. Then it takes its
steps, and the updated model scores the batch. The loss needs the sum over a whole conversation. A row is a whole conversation,
so a micro-batch always has complete sums, however small it is.
"""

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field
from torch import Tensor

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.learner.compute.core import Core, LossFunction, Outputs, means, run_epochs
from mtrl_ray.learner.compute.references import REFERENCE
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.batch import Batch
from mtrl_ray.learner.rows.tables import Tables, starts_of
from mtrl_ray.learner.sections import Fit
from mtrl_ray.objectives.turn_rewards import pair_accuracy, prm_loss, sign_accuracy

PRM = "prm"


class PRMFit(Fit, Operation[None], epochs=1, minibatch_conversations=32, max_gradient_norm=10.0):
    """Train the reward model on the conversations' scores.

    run: conversations. Numbers: means over the steps of `loss` (nats per conversation) and `gradient_norm`; `skipped`,
    `seconds`; and of its predictions before the update: `pair_accuracy`, `sign_accuracy`, `r`, `sum_deviation`.
    """

    doing: ClassVar[str] = "fitting the process reward model"

    beta: float = Field(0.05, gt=0)
    """β of the token reward `β log π_φ/π_ref`."""

    def run(self, core: Core, conversations: Tables) -> tuple[None, Numbers]:
        """See the class."""
        started = time.perf_counter()
        batch = Batch.read(conversations)
        batch.require_scores()
        core.references.keep_initial()
        core.models.copy(PRM, REFERENCE)
        rows, scores = batch.token_rows, core.tensor(batch.scores)
        learned, frozen = (core.evaluate(name, rows)["logprobs"] for name in (PRM, REFERENCE))
        before = _quality(batch, self.beta * (learned - frozen))
        reference, conversation = core.tensor(frozen), core.tensor(batch.token_conversation)

        def step(selection: np.ndarray) -> Numbers:
            loss = outcome_loss(reference, conversation, scores, len(selection), self.beta)
            return core.update(PRM, rows, selection, loss, self.step)

        history = run_epochs(rows, core.generator("fit_prm"), self, step)
        return None, means(history) | before | {"seconds": time.perf_counter() - started}


@dataclass(frozen=True)
class ImplicitRewards(Operation[np.ndarray]):
    """`β log π_φ/π_ref` of every agent token, float32 [agent tokens].

    run: conversations. Raises ConfigurationError before `PRMFit`.
    """

    beta: float

    def run(self, core: Core, conversations: Tables) -> tuple[np.ndarray, Numbers]:
        """See the class."""
        return implicit_rewards(core, Batch.read(conversations), self.beta), {}


@dataclass(frozen=True)
class ScoreTurns(Operation[pa.Table]):
    """The implicit reward of every agent turn: columns conversation_id, turn (index into the conversation's turns),
    reward (the sum), token_rewards (list).

    run: conversations. Raises ConfigurationError before `PRMFit`.
    """

    beta: float

    def run(self, core: Core, conversations: Tables) -> tuple[pa.Table, Numbers]:
        """See the class."""
        batch = Batch.read(conversations)
        rewards, ends = implicit_rewards(core, batch, self.beta), starts_of(batch.turn_lengths)
        table = pa.table(
            {
                "conversation_id": pc.take(batch.dialogues.ids, pa.array(batch.turn_conversation)),
                "turn": batch.dialogues.agent_turn_numbers(),
                "reward": np.add.reduceat(rewards, ends[:-1]),
                "token_rewards": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(rewards)),
            }
        )
        return table, {}


def implicit_rewards(core: Core, batch: Batch, beta: float) -> np.ndarray:
    """`β [log π_φ - log π_ref]` of every agent token, float32 [agent tokens]."""
    if PRM not in core.models:
        raise ConfigurationError("there is no process reward model yet; run PRMFit first")
    learned, frozen = (core.evaluate(name, batch.token_rows)["logprobs"] for name in (PRM, REFERENCE))
    return beta * (learned - frozen)


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


def _quality(batch: Batch, rewards: np.ndarray) -> Numbers:
    """How well the model predicts these conversations' outcomes."""
    sums = torch.zeros(len(batch), dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(batch.token_conversation), torch.from_numpy(rewards).double())
    scores, groups = torch.from_numpy(batch.scores.copy()).double(), torch.from_numpy(batch.groups.copy())
    numbers = {
        "pair_accuracy": float(pair_accuracy(sums, scores, groups)),
        "sign_accuracy": float(sign_accuracy(sums, scores)),
        "sum_deviation": float(sums.std(correction=0)),
    }
    if sums.std() > 0 and scores.std() > 0:
        numbers["r"] = float(np.corrcoef(sums.numpy(), scores.numpy())[0, 1])
    return numbers
