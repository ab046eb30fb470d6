"""Settings that algorithms on whole conversations share."""

from pydantic import Field, model_validator

from mtrl_ray.algorithms.base import AlgorithmSettings
from mtrl_ray.learner.methods.advantages import Advantages
from mtrl_ray.learner.methods.conversations import ConversationImprovement


class OutcomeSettings(AlgorithmSettings):
    """Of algorithms that learn from a conversation's score."""

    overlong_penalty: float = Field(0.0, ge=0)
    """What an answer costs that ended at `rollout.response_tokens`, or at which the context window cut the conversation off, in
    units of the score; 0: the score that the environment gave such a conversation says what it is worth."""


class GroupSettings(AlgorithmSettings):
    """Of algorithms that improve the policy on token advantages from rewards."""

    advantages: Advantages = Advantages()
    improvement: ConversationImprovement = ConversationImprovement()

    @model_validator(mode="after")
    def _has_groups(self) -> "GroupSettings":
        estimator = self.advantages.estimator
        if estimator in ("rloo", "grpo") and self.samples < 2:
            raise ValueError(
                f"advantages.estimator is {estimator} and samples is {self.samples}; a group needs at least 2 conversations"
            )
        return self
