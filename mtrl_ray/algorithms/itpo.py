"""ITPO: turn rewards from an implicit process reward model, for multi-turn policy optimisation (2603.23550).

    π_φ = copy of the policy, π_ref frozen
    repeat
        D     = n conversations on each of a batch of contexts, held with π
        π_φ   ← one online update on D:  cross-entropy of σ(Σ_t r_t) with the outcome,  r_t = β log π_φ/π_ref
        R_k   = Σ_{t in turn k} r_t,  or the outcome split by  w = softmax_k(R_k / η)                  (ITPO, Norm-ITPO)
        A     = advantages of the rewards on the turns' last tokens:  PPO, GRPO or RLOO
        π     ← clipped surrogate with a KL loss (k3) to π_0
    until done

`rewards.scheme` puts any baseline of the paper's tables in the place of R_k; `advantages.estimator` picks A.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from mtrl_ray.algorithms.base import Algorithm
from mtrl_ray.feedback.turn_weights import JudgeSettings
from mtrl_ray.learner.specification import IMPLICIT, SPLITS, Advantages, ConversationImprovement, PRMFit, TurnRewards
from mtrl_ray.settings.section import Section

if TYPE_CHECKING:
    from mtrl_ray.system.system import System


class ITPOSettings(Section):
    """The `algorithm:` section."""

    name: Literal["itpo"] = "itpo"
    contexts: int = Field(32, ge=1)
    """Fresh training contexts per iteration."""
    samples: int = Field(8, ge=1)
    """Conversations per context (n)."""
    rewards: TurnRewards = TurnRewards()
    prm: PRMFit = PRMFit()
    judge: JudgeSettings = JudgeSettings()
    advantages: Advantages = Advantages()
    improvement: ConversationImprovement = ConversationImprovement()
    turn_scores_every: int = Field(0, ge=0)
    """Keep what the process reward model gives the turns of the first evaluation, after every so many iterations'
    fits (`evaluation.turn_ranks`); 0: never."""

    @model_validator(mode="after")
    def _possible(self) -> "ITPOSettings":
        estimator, scheme = self.advantages.estimator, self.rewards.scheme
        if estimator != "ppo" and self.samples < 2:
            raise ValueError(
                f"advantages.estimator is {estimator} and samples is {self.samples}; a group needs at least 2 conversations"
            )
        if self.advantages.baseline == "pooled" and scheme not in SPLITS:
            raise ValueError(
                f"advantages.baseline is pooled and rewards.scheme is {scheme}; pooled compares shares of an outcome: use "
                f"{', '.join(SPLITS)}, or baseline: aligned"
            )
        if self.judge.source == "llm" and scheme != "judge":
            raise ValueError(f"judge.source is llm and rewards.scheme is {scheme}; set rewards.scheme to judge")
        return self


class ITPO(Algorithm[ITPOSettings]):
    """See the module's docstring."""

    settings_class: ClassVar[type[Section]] = ITPOSettings

    def iterate(self, system: "System") -> None:
        """One pass of the loop."""
        settings = self.settings
        logged = system.rollout(settings.contexts, settings.samples)
        conversations, implicit = logged.window(1), None
        if settings.rewards.scheme == "judge":
            conversations = system.judge(conversations, settings.judge)
        if settings.rewards.scheme in IMPLICIT:
            system.fit_prm(conversations, settings.prm)
            implicit = system.implicit_rewards(conversations, settings.prm.beta)
            if settings.turn_scores_every and system.iteration % settings.turn_scores_every == 0:
                system.keep_turn_scores(settings.prm.beta)
        rewards = system.turn_rewards(conversations, settings.rewards, implicit)
        advantages = system.advantages(conversations, rewards, settings.advantages)
        system.improve_conversations(conversations, advantages, settings.improvement)
        system.publish()
