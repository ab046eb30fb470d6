"""An algorithm of somebody else: an own operation with an own loss, own models, and a coefficient that it learns.

`MedianFit` fits a value model to the median of the scores (absolute error), gives every token the score less what that model
predicted for its turn, and moves an average of the policy along. The weight of the KL to the reference follows the measured KL.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtrl_ray.algorithms.base import Algorithm, AlgorithmSettings
from mtrl_ray.learner.compute.core import Core, LossFunction, Outputs, means, run_epochs
from mtrl_ray.learner.methods.conversations import ConversationImprovement
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.batch import Batch
from mtrl_ray.learner.rows.tables import Tables
from mtrl_ray.learner.sections import KL, Fit
from mtrl_ray.settings.section import Section
from mtrl_ray.system.system import System


def absolute_error(targets: Tensor, count: int) -> LossFunction:
    """Mean absolute error of the minibatch's `count` items."""

    def loss(outputs: Outputs, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        total = (outputs["values"] - targets[items]).abs().sum() / count
        return total, {"loss": total}

    return loss


class MedianFit(Fit, Operation[np.ndarray], epochs=1, minibatch_conversations=4):
    """run: conversations. Token advantages, float32 [agent tokens]; `loss`, `distance` of the average from the policy."""

    doing: ClassVar[str] = "fitting medians"

    rate: float = Field(0.5, gt=0, le=1)
    """Of the policy's moving average."""

    def run(self, core: Core, conversations: Tables) -> tuple[np.ndarray, Numbers]:
        batch = Batch.read(conversations)
        rows, outcomes = batch.state_rows, batch.scores[batch.turn_conversation]
        core.calibrate("median", outcomes)
        predicted = core.evaluate("median", rows)["values"]
        targets = core.tensor(outcomes)

        def step(selection: np.ndarray) -> Numbers:
            loss = absolute_error(targets, len(rows.items_of(selection)))
            return core.update("median", rows, selection, loss, self.step)

        history = run_epochs(rows, core.generator("median"), self, step)
        average = core.models.follow("average", "policy", self.rate)
        pairs = zip(average.parameters(), core.models.policy.parameters(), strict=True)
        with torch.no_grad():
            distance = sum(float((ours - theirs).square().sum()) for ours, theirs in pairs)
        return np.repeat(outcomes - predicted, batch.turn_lengths), means(history) | {"distance": distance}


class OwnSettings(AlgorithmSettings, name="tests.support.own_algorithm:Own", contexts=4, samples=2):
    """The `algorithm:` section."""

    median: MedianFit = MedianFit()
    improvement: ConversationImprovement = ConversationImprovement(minibatch_conversations=4)
    target: float = Field(1e-3, gt=0)
    """Nats per token from the reference that the coefficient steers to."""


class Own(Algorithm[OwnSettings]):
    """See the module's docstring."""

    settings_class: ClassVar[type[Section]] = OwnSettings

    def __init__(self, settings: OwnSettings) -> None:
        super().__init__(settings)
        self.coefficient = 0.01

    def state(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def restore(self, state: dict[str, Any]) -> None:
        self.coefficient = float(state["coefficient"])

    def iterate(self, system: System) -> None:
        settings = self.settings
        conversations = system.rollout(settings.contexts, settings.samples).window(1)
        advantages, _ = system.learn(settings.median, conversations, metrics="median")
        kl = KL(coefficient=self.coefficient, kind="k2", place="loss")
        improvement = settings.improvement.model_copy(update={"kl": kl})
        _, numbers = system.learn(improvement, conversations, advantages, metrics="improve")
        measured = system.fetch(numbers, "the improvement")["kl_reference"]
        self.coefficient *= 1.5 if measured > settings.target else 1 / 1.5
        system.publish()
