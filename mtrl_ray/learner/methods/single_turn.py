"""One policy improvement on single turns, in logged states, with a Q that scores responses (2511.21638 §2.3).

The gradient has two parts, which estimate the same; each has mean 0 and is brought to variance 1.

1. Sampled responses: Q less its mean over the K responses sampled in the state. Equal responses are computed once. This part
   counts as much as Q deserves (`linear_q.Scores.confidence`): what cannot rank responses is noise, however it is scaled.
2. What was said: the λ-return less V. It has the noise of what happened later, but no error of Q.

All tokens of a response share its advantage; a response that ended at the token limit is judged as it stands. An advantage is
clipped at `BOUND` deviations.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtrl_ray.errors import DataError
from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.methods.linear_q import Scores
from mtrl_ray.learner.methods.updates import PolicySteps, PolicyUpdate, measure
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.batch import Batch
from mtrl_ray.learner.rows.packing import response_tokens
from mtrl_ray.learner.rows.tables import Responses, Tables
from mtrl_ray.objectives.advantages import SCORE_FLOOR

BOUND = 3.0
"""Deviations."""


@dataclass(frozen=True)
class SingleTurnImprovement(Operation[None]):
    """Policy improvement on responses in logged states.

    run: conversations; responses sampled in their states; their `Scores`.
    Numbers: those of `PolicySteps.run`; `score` (Q of the sampled responses), `score_deviation` (within a state),
    `logged_deviation` (of what was said, before scaling), `distinct` (different responses per state), `truncated` (share of
    the sampled responses that ended at the token limit), `response_tokens` (mean length), `responses`, `importance_weight`.
    """

    doing: ClassVar[str] = "improving the policy"

    update: PolicyUpdate
    logged: float = 1.0
    """Weight of what was said beside the responses sampled in its state; 0: Q's alone."""

    def run(self, core: Core, conversations: Tables, responses: Tables, scores: Scores) -> tuple[None, Numbers]:
        """See the class."""
        batch = Batch.read(conversations)
        sampled = Responses.read(responses, batch.dialogues)
        said = Responses.logged(batch.dialogues, batch.logprobs, batch.versions)
        if len(scores.responses) != len(sampled) or not np.isfinite(scores.responses).all():
            raise DataError(f"{len(sampled)} responses need as many finite scores; {len(scores.responses)} were given")
        if len(scores.logged) != len(said):
            raise DataError(f"{len(said)} logged responses need as many advantages; {len(scores.logged)} were given")
        some, kind = sampled.distinct()
        counts = np.bincount(kind, minlength=len(some))
        among, within = _centred(scores.responses[some], counts, sampled.state[some])
        per_state = np.bincount(sampled.state, minlength=1)[sampled.state[some]]
        known = np.isfinite(scores.logged) & (self.logged > 0)
        told = scores.logged[known]
        deviation = float(told.std()) if len(told) else 0.0
        everything = sampled.take(some) + said.take(np.flatnonzero(known))
        advantages = np.concatenate(
            [_scaled(among, within), _scaled(told - told.mean() if len(told) else told, deviation)]
        )
        weights = np.concatenate([counts / per_state * scores.confidence, np.full(len(told), self.logged)])
        numbers = self._improve(core, batch, everything, advantages, weights)
        return None, numbers | {
            "score": float(scores.responses.mean()) if len(sampled) else 0.0,
            "score_deviation": within,
            "logged_deviation": deviation,
            "distinct": float(len(some) / max(len(np.unique(sampled.state)), 1)),
            "truncated": float(sampled.truncated.mean()) if len(sampled) else 0.0,
            "response_tokens": float(sampled.lengths.mean()) if len(sampled) else 0.0,
            "responses": float(len(sampled)),
        }

    def _improve(
        self, core: Core, batch: Batch, responses: Responses, advantages: np.ndarray, weights: np.ndarray
    ) -> Numbers:
        """Steps on these responses; `advantages`, `weights`: [responses]."""
        counted = np.flatnonzero(weights > 0)
        responses, advantages, weights = responses.take(counted), advantages[counted], weights[counted]
        if not len(responses):
            raise DataError(
                "there are no responses to improve the policy on: Q is not sure of any, and none was logged"
            )
        rows = response_tokens(batch.dialogues, responses, core.branch_tokens)
        measured = measure(core, rows, responses.logprobs, responses.versions, self.update)
        lengths = core.tensor(responses.lengths)
        per_token, shares = (
            torch.repeat_interleave(core.tensor(values.astype(np.float32)), lengths) for values in (advantages, weights)
        )
        alike = None if self.update.aggregation == "token" else lengths
        steps = PolicySteps(core, rows, measured, per_token, alike, self.update, weights=shares)
        return steps.run("improve") | {"importance_weight": float(measured.weights.mean())}


def _centred(scores: np.ndarray, counts: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, float]:
    """Score less its state's mean, and the deviation of that; each response counts `counts` times."""
    total = np.bincount(state, weights=counts)
    centred = scores - (np.bincount(state, weights=counts * scores) / np.maximum(total, 1))[state]
    return centred, float(np.sqrt((counts * np.square(centred)).sum() / max(counts.sum(), 1)))


def _scaled(advantages: np.ndarray, deviation: float) -> np.ndarray:
    """Advantages in deviations, clipped; what hardly varies (`SCORE_FLOOR`) stays small."""
    return np.clip(advantages / max(deviation, SCORE_FLOOR), -BOUND, BOUND)
