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

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from mtrl_ray.algorithms.base import Algorithm
from mtrl_ray.algorithms.conversation_settings import GroupSettings
from mtrl_ray.evaluation import turn_ranks
from mtrl_ray.feedback.turn_weights import JudgeSettings, judge_turns
from mtrl_ray.learner.methods.prm import ImplicitRewards, PRMFit, ScoreTurns
from mtrl_ray.learner.methods.turn_rewards import IMPLICIT, SPLITS, TurnRewards
from mtrl_ray.settings.section import Section

if TYPE_CHECKING:
    from mtrl_ray.system.system import System


class ITPOSettings(GroupSettings, name="itpo", contexts=32, samples=8):
    """The `algorithm:` section; `samples` is n."""

    rewards: TurnRewards = TurnRewards()
    prm: PRMFit = PRMFit()
    judge: JudgeSettings = JudgeSettings()
    turn_scores_every: int = Field(0, ge=0)
    """Keep the process reward model's scores of the turns of the first evaluation, after the fits of every so many
    iterations (`evaluation.turn_ranks`); 0: never."""

    @model_validator(mode="after")
    def _possible(self) -> "ITPOSettings":
        scheme = self.rewards.scheme
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
            conversations = judge_turns(system, conversations, settings.judge)
        if settings.rewards.scheme in IMPLICIT:
            system.learn(settings.prm, conversations, metrics="prm")
            implicit, _ = system.learn(ImplicitRewards(settings.prm.beta), conversations)
            if settings.turn_scores_every and system.iteration % settings.turn_scores_every == 0:
                self._keep_turn_scores(system)
        rewards, _ = system.learn(settings.rewards, conversations, implicit, metrics="rewards")
        advantages, made = system.learn(settings.advantages, conversations, rewards, metrics="advantages")
        system.learn(settings.improvement, conversations, advantages, made, metrics="improve")
        system.publish()

    def _keep_turn_scores(self, system: "System") -> None:
        scores, _ = system.learn(ScoreTurns(self.settings.prm.beta), turn_ranks.probed(system.folder))
        table = system.fetch(scores, "the learner to score turns")
        turn_ranks.keep(system.folder, system.iteration + 1, table)
