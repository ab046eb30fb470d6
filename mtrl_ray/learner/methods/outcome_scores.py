"""Returns of continued responses in place of Q: what a perfect Q of the policy as it is would say, and noise."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.methods.features import turn_ranks
from mtrl_ray.learner.methods.linear_q import Scores
from mtrl_ray.learner.methods.q import Turns
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.tables import Dialogues, Responses, Tables, as_table


@dataclass(frozen=True)
class OutcomeScores(Operation[Scores]):
    """`Scores` whose `responses` are mean returns of continuations, with full confidence.

    run: conversations; responses in their states; those responses that were continued; what `System.continued` made of them;
    the `Scores` of a fit, whose other parts stay. A response equal to none of these, or whose continuations all failed, gets
    the mean of its state, which gives it no advantage.
    Numbers: `responses` (that were continued), `conversations`, `missing` (responses without an outcome).
    """

    doing: ClassVar[str] = "reading continued outcomes"

    discount: float
    """γ per agent turn, as in the fit."""

    def run(
        self, core: Core, conversations: Tables, responses: Tables, continued: Tables, outcomes: Tables, scores: Scores
    ) -> tuple[Scores, Numbers]:
        """See the class."""
        dialogues = Dialogues.read(conversations)
        sampled, chosen = Responses.read(responses, dialogues), Responses.read(continued, dialogues)
        values = self._values(dialogues, chosen, outcomes)
        both = chosen + sampled
        _, kind = both.distinct()
        of_kind = np.full(int(kind.max(initial=-1)) + 1, np.nan)
        of_kind[kind[: len(chosen)]] = values
        found = of_kind[kind[len(chosen) :]]
        known = np.isfinite(found)
        state = sampled.state
        total = np.bincount(state, weights=np.where(known, found, 0.0))
        mean = total / np.maximum(np.bincount(state, weights=known), 1)
        filled = np.where(known, found, mean[state]).astype(np.float32)
        numbers = {
            "responses": float(len(chosen)),
            "conversations": float(as_table(outcomes).num_rows),
            "missing": float(np.isnan(values).sum()),
        }
        return replace(scores, responses=filled, confidence=1.0), numbers

    def _values(self, dialogues: Dialogues, chosen: Responses, outcomes: Tables) -> np.ndarray:
        """Mean return of each continued response from its turn on, float64 [chosen]; NaN if there is none."""
        table = as_table(outcomes)
        finished = Dialogues.read(table.drop_columns(["start"]))
        turns = finished.agent_turns
        first = np.searchsorted(finished.turn_conversation[turns], np.arange(len(finished)))
        rank = np.zeros(len(dialogues.agent), dtype=np.int64)
        rank[dialogues.agent_turns] = turn_ranks(dialogues)
        start = table["start"].to_numpy()
        returns = Turns(finished).returns(self.discount)[first + rank[chosen.turn[start]]]
        count = np.bincount(start, minlength=len(chosen))
        with np.errstate(invalid="ignore"):
            mean: np.ndarray = np.bincount(start, weights=returns, minlength=len(chosen)) / count
        return mean
