"""One policy improvement on single turns, in logged states, with a Q that scores responses (2511.21638 §2.3).

The gradient has two parts, which estimate the same; each has mean 0 and is brought to variance 1. A third is exact.

1. Sampled responses: Q less its mean over the K responses sampled in the state. Equal responses are computed once. This part
   counts as much as Q deserves (`linear_q.Scores.confidence`): what cannot rank responses is noise, however it is scaled.
2. What was said: the λ-return less V. It has the noise of what happened later, but no error of Q.
3. If likelier responses turned out to be better (`linear_q.Scores.sharpening`), the policy is sharpened by as much, times
   `sharpening`: an entropy coefficient below 0, whose gradient has no noise of sampling. It ends by itself: where the
   policy's answers no longer differ, nothing says that likelier ones are better.

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
from mtrl_ray.learner.rows.packing import response_tokens
from mtrl_ray.learner.rows.tables import Dialogues, Responses, Tables
from mtrl_ray.objectives.advantages import SCORE_FLOOR, group_centred
from mtrl_ray.statistics.ranking import spread

BOUND = 3.0
"""Largest advantage, in deviations."""
MOST_SHARPENING = 0.5
"""Largest weight of the entropy, per nat: more was never tried."""


@dataclass(frozen=True)
class SingleTurnImprovement(Operation[None]):
    """Policy improvement on responses in logged states.

    run: conversations; responses sampled in their states; their `Scores`.
    Numbers: those of `PolicySteps.run`; `score` (Q of the sampled responses), `score_within` and `score_between` (see
    `statistics.ranking.Spread`), `logged_deviation` (of what was said, before scaling), `truncated` (share of the sampled
    responses that ended at the token limit), `responses`, `importance_weight`. No step is taken if Q is sure of nothing and
    what was said does not count. `entropy_bonus`: the coefficient with which the steps were taken.
    """

    doing: ClassVar[str] = "improving the policy"

    update: PolicyUpdate
    logged: float = 1.0
    """Weight of what was said beside the responses sampled in its state; 0: Q's alone."""
    sharpening: float = 0.0
    """Weight of the third part; 1 is its share in the gradient of which the others are estimates."""

    def run(self, core: Core, conversations: Tables, responses: Tables, scores: Scores) -> tuple[None, Numbers]:
        """See the class."""
        dialogues = Dialogues.read(conversations)
        sampled, said = Responses.read(responses, dialogues), Responses.logged(dialogues)
        if len(scores.responses) != len(sampled) or not np.isfinite(scores.responses).all():
            raise DataError(f"{len(sampled)} responses need as many finite scores; {len(scores.responses)} were given")
        if len(scores.logged) != len(said):
            raise DataError(f"{len(said)} logged responses need as many advantages; {len(scores.logged)} were given")
        some, kind = sampled.distinct()
        among = group_centred(torch.from_numpy(scores.responses), torch.from_numpy(sampled.state)).numpy()
        among_weights = np.bincount(kind) / np.bincount(sampled.state)[sampled.state[some]] * scores.confidence
        known = np.flatnonzero(np.isfinite(scores.logged))
        told = scores.logged[known] - scores.logged[known].mean() if len(known) else scores.logged[known]
        numbers = self._improve(
            core,
            dialogues,
            sampled.take(some) + said.take(known),
            np.concatenate([_scaled(among)[some], _scaled(told)]),
            np.concatenate([among_weights, np.full(len(known), self.logged)]),
            self.update.entropy_bonus - min(self.sharpening * scores.sharpening, MOST_SHARPENING),
        )
        return None, numbers | spread(scores.responses, sampled.state).numbers("score") | {
            "score": float(scores.responses.mean()),
            "logged_deviation": float(told.std()) if len(told) else 0.0,
            "truncated": float(sampled.truncated.mean()),
            "responses": float(len(sampled)),
        }

    def _improve(
        self,
        core: Core,
        dialogues: Dialogues,
        responses: Responses,
        advantages: np.ndarray,
        weights: np.ndarray,
        entropy_bonus: float,
    ) -> Numbers:
        """Steps on these responses; `advantages`, `weights`: [responses]."""
        update = self.update.model_copy(update={"entropy_bonus": entropy_bonus})
        counted = np.flatnonzero(weights > 0)
        responses, advantages, weights = responses.take(counted), advantages[counted], weights[counted]
        if not len(responses):
            return {"policy_steps": 0.0, "trained_tokens": 0.0}
        rows = response_tokens(dialogues, responses, core.branch_tokens)
        measured = measure(core, rows, responses.logprobs, responses.versions, update)
        lengths = core.tensor(responses.lengths)
        per_token, shares = (
            torch.repeat_interleave(core.tensor(values.astype(np.float32)), lengths) for values in (advantages, weights)
        )
        alike = None if update.aggregation == "token" else lengths
        steps = PolicySteps(core, rows, measured, per_token, alike, update, weights=shares)
        return steps.run("improve") | {
            "importance_weight": float(measured.weights.mean()),
            "entropy_bonus": entropy_bonus,
        }


def _scaled(advantages: np.ndarray) -> np.ndarray:
    """Centred advantages in their deviations, clipped; what hardly varies (`SCORE_FLOOR`) stays small."""
    deviation = float(advantages.std()) if len(advantages) else 0.0
    return np.clip(advantages / max(deviation, SCORE_FLOOR), -BOUND, BOUND)
