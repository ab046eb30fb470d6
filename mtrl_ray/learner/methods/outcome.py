"""The outcome of whole conversations as token rewards: nothing is split, every turn shares what comes after it.

The score is the reward of the conversation's last agent token. An overlong answer (it ended at `rollout.response_tokens`, or
the context window cut its conversation off) costs `penalty`, charged to its own last token: the answer and what was said
before it pay, what came later does not.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.batch import Batch, Layout
from mtrl_ray.learner.rows.tables import Tables
from mtrl_ray.objectives.advantages import place_at_turn_end
from mtrl_ray.objectives.turn_rewards import on_last_turn


@dataclass(frozen=True)
class Outcome(Operation[np.ndarray]):
    """Token rewards, float32 [agent tokens].

    run: conversations. Numbers: `outcome`, the mean score less the penalties; `overlong`, the share of overlong answers.
    """

    doing: ClassVar[str] = "rewarding conversations"

    penalty: float = 0.0
    """What an overlong answer costs, in units of the score."""

    def __post_init__(self) -> None:
        if not self.penalty >= 0:
            raise ConfigurationError(f"the penalty of overlong answers is {self.penalty}; it has to be at least 0")

    def run(self, core: Core, conversations: Tables) -> tuple[np.ndarray, Numbers]:
        """See the class."""
        batch = Batch.read(conversations)
        batch.require_scores()
        layout = Layout(batch.dialogues, core.device)
        overlong = batch.dialogues.overlong.astype(np.float32)
        costs = layout.of_turns(core.tensor(self.penalty * overlong))
        earned = on_last_turn(core.tensor(batch.scores), layout.present) - costs
        rewards = place_at_turn_end(earned, layout.turn_index, layout.mask)[layout.mask].float().cpu().numpy()
        return rewards, {"outcome": float(earned.sum() / len(batch)), "overlong": float(overlong.mean())}
