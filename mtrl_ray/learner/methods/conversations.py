"""One policy improvement on whole conversations: token advantages in, policy steps out.

Credit assignment is done elsewhere (`advantages`, or your own operation): this file takes advantages of all agent
tokens and runs `updates` on them, every conversation one row with all its turns.
"""

from typing import ClassVar

import numpy as np
from pydantic import model_validator

from mtrl_ray.errors import DataError
from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.methods.updates import PolicySteps, PolicyUpdate, measure
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.batch import Batch, lengths_of
from mtrl_ray.learner.rows.tables import Tables
from mtrl_ray.learner.sections import KL


class ConversationImprovement(
    PolicyUpdate,
    Operation[None],
    epochs=1,
    kl=KL(coefficient=1e-3, kind="k3", place="loss"),
    entropy_bonus=1e-3,
):
    """Policy improvement on all agent tokens of whole conversations, their advantages given.

    run: conversations; advantages, float32 [agent tokens]; the numbers of the operation that made them, whose `signal` (1 if it
    gives none) shortens the steps; mixture, the reference's share in what sampled (see `measure`).
    Numbers: means over the steps of `policy_loss`, `kl_reference` (k3, nats per token), `kl_step` (to the policy it started
    from), `clip_fraction`, `entropy` (nats), `gradient_norm`; sums `skipped`, `policy_steps`, `trained_tokens`; `score`,
    `score_deviation`, `importance_weight`, `advantage_deviation`, `truncated` (share of the agent turns that ended at the token
    limit), `conversations`, `groups`, `seconds`, `tokens_per_second`.
    """

    doing: ClassVar[str] = "improving the policy"

    @model_validator(mode="after")
    def _kl_in_the_loss(self) -> "ConversationImprovement":
        if self.kl.place == "reward" and self.kl.coefficient > 0:
            raise ValueError("kl.place is reward, but the advantages are given; use place: loss with kind k2 or k3")
        return self

    def run(
        self,
        core: Core,
        conversations: Tables,
        advantages: np.ndarray,
        made: Numbers | None = None,
        mixture: float = 0.0,
    ) -> tuple[None, Numbers]:
        """See the class."""
        batch = Batch.read(conversations)
        if len(advantages) != len(batch.logprobs) or not np.isfinite(advantages).all():
            raise DataError(
                f"{len(batch.logprobs)} agent tokens need as many finite advantages; {len(advantages)} were given"
            )
        rows, alike = batch.token_rows, lengths_of(batch, self.aggregation)
        measured = measure(core, rows, batch.logprobs, batch.versions, self, mixture)
        lengths = None if alike is None else core.tensor(alike)
        signal = (made or {}).get("signal", 1.0)
        steps = PolicySteps(core, rows, measured, core.tensor(advantages), lengths, self, signal)
        return None, steps.run("improve_conversations") | {
            "score": float(batch.scores.mean()),
            "score_deviation": float(batch.scores.std()),
            "advantage_deviation": float(np.std(advantages)),
            "importance_weight": float(measured.weights.mean()),
            "truncated": batch.truncated,
            "conversations": float(len(batch)),
            "groups": float(len(np.unique(batch.groups))),
        }
