"""Policy gradient on the outcome of the whole conversation: what multi-turn reinforcement learning usually is.

    repeat
        D = n conversations on each of a batch of contexts, held with π
        A = the outcome of each, from every turn on, against a baseline:
            RLOO       the mean of the others on its context                                   (2402.14740)
            GRPO       the mean of its context, over their standard deviation                  (2402.03300)
            REINFORCE++    the mean of the batch, over the batch's standard deviation          (2501.03262)
            PPO        a token critic, GAE over all agent tokens                               (1707.06347, 1506.02438)
            PPO over turns    one value per state before an answer, GAE over turns             (2405.14655 §4.1)
        π ← clipped surrogate with a KL loss to π_0

No turn is given credit of its own: a good answer in a lost conversation is blamed. Iterative PPO (`iterative_ppo`) and ITPO
(`itpo`) are about that; this is what they are compared with.
"""

from typing import TYPE_CHECKING, ClassVar

from pydantic import model_validator

from mtrl_ray.algorithms.base import Algorithm
from mtrl_ray.algorithms.conversation_settings import GroupSettings, OutcomeSettings
from mtrl_ray.learner.methods.outcome import Outcome
from mtrl_ray.settings.section import Section

if TYPE_CHECKING:
    from mtrl_ray.system.system import System


class PolicyGradientSettings(GroupSettings, OutcomeSettings, name="policy_gradient", contexts=32, samples=8):
    """The `algorithm:` section; `samples` is n, `advantages.estimator` says which."""

    @model_validator(mode="after")
    def _one_reward(self) -> "PolicyGradientSettings":
        if self.advantages.baseline != "aligned":
            raise ValueError(
                f"advantages.baseline is {self.advantages.baseline}, which is about rewards of turns; the outcome needs aligned"
            )
        return self


class PolicyGradient(Algorithm[PolicyGradientSettings]):
    """See the module's docstring."""

    settings_class: ClassVar[type[Section]] = PolicyGradientSettings

    def iterate(self, system: "System") -> None:
        """One pass of the loop."""
        settings = self.settings
        conversations = system.rollout(settings.contexts, settings.samples).table
        rewards, _ = system.learn(Outcome(settings.overlong_penalty), conversations, metrics="rewards")
        advantages, made = system.learn(settings.advantages, conversations, rewards, metrics="advantages")
        system.learn(settings.improvement, conversations, advantages, made, metrics="improve")
        system.publish()
