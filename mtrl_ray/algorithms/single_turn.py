"""Single-turn baselines of MTPO: RLHF and Nash-MD on one response at a time (2405.14655 §6).

    μ = π_0;  on conversations of μ: two responses in one state, compared
        as they stand (feedback: reward), or by what μ makes of them until the end (feedback: value)
    R (method: rlhf) or P (method: nash_md)  ← fitted on these comparisons, and then left as it is
    repeat
        D = the states of conversations held with π;  y ~ π(s)
        score = R(s, y)                                                                         (RLHF)
              = P(s, y ≻ y'),  y' ~ the mixture π^{1-τ} μ^τ                                     (Nash-MD)
        π ← token-level PPO on the responses, with α KL(π‖μ) inside their rewards; no later turn is generated

The states are the policy's own, as for Iterative PPO; the improvement is Iterative PPO's, with another score.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from mtrl_ray.algorithms.base import Algorithm, AlgorithmSettings
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.feedback.learned import FirstFit, Learned, LearnedSettings
from mtrl_ray.feedback.offline_pairs import parted_pairs
from mtrl_ray.feedback.preferences import PreferenceSettings, first_members, scored
from mtrl_ray.feedback.single_turns import Feedback, matched
from mtrl_ray.learner.methods.improvement import Improvement
from mtrl_ray.learner.methods.pair_models import PairModel, Preferences, ResponseRewards
from mtrl_ray.learner.sections import KL
from mtrl_ray.processes.refs import Ref
from mtrl_ray.settings.section import Section

if TYPE_CHECKING:
    from mtrl_ray.settings.tree import Settings
    from mtrl_ray.system.logged import States
    from mtrl_ray.system.system import System


class ResponseLoss(Improvement):
    """Single-turn policy improvement. Its KL is the algorithm's: `algorithm.alpha`."""

    @model_validator(mode="after")
    def _kl_is_alpha(self) -> "ResponseLoss":
        if "kl" in self.model_fields_set:
            raise ValueError("kl is set by algorithm.alpha, the weight of KL(π‖μ) in the responses' rewards")
        return self


class SingleTurnSettings(AlgorithmSettings, name="single_turn", contexts=128):
    """The `algorithm:` section."""

    method: Literal["rlhf", "nash_md"] = "rlhf"
    """`rlhf`: a Bradley-Terry reward model scores responses; `nash_md`: a preference model compares each with one of the
    mixture of policy and reference."""
    feedback: Feedback = "reward"
    """What the model was fitted on: `reward`, responses compared as they stand; `value`, by how conversations end."""
    states: int = Field(256, ge=1)
    """Logged states per iteration, drawn uniformly from the iteration's conversations."""
    responses: int = Field(2, ge=1)
    """Responses sampled in each state."""
    alpha: float = Field(0.01, ge=0)
    """α, the weight of KL(π‖μ), in units of the score per nat."""
    tau: float = Field(0.0375, gt=0, le=1)
    """τ, the reference's share in the mixture of `nash_md`."""
    preferences: PreferenceSettings = PreferenceSettings()
    """Who compares."""
    model: LearnedSettings = LearnedSettings(first=FirstFit())
    """The reward or preference model; only a `first` fit knows the feedback, a folder's model brings its own."""
    improvement: ResponseLoss = ResponseLoss()

    @model_validator(mode="after")
    def _possible(self) -> "SingleTurnSettings":
        if self.model.refresh:
            raise ValueError("model.refresh compares whole conversations; single_turn keeps the model it begins with")
        if self.improvement.estimator == "grpo" and self.responses < 2:
            raise ValueError("improvement.estimator is grpo and responses is 1; a group needs at least 2 responses")
        return self

    @property
    def model_kind(self) -> PairModel:
        """Which model is learned."""
        return "reward" if self.method == "rlhf" else "preference"


class SingleTurn(Algorithm[SingleTurnSettings]):
    """See the module's docstring."""

    settings_class: ClassVar[type[Section]] = SingleTurnSettings

    def __init__(self, settings: SingleTurnSettings) -> None:
        super().__init__(settings)
        self._learned = Learned(settings.model, settings.model_kind)

    def check(self, settings: "Settings") -> None:
        """See `Algorithm.check`: a judge has to be there, and so have a mixture's reference and a model's folder."""
        if self.settings.method == "nash_md" and not settings.rollout.reference:
            raise ConfigurationError(
                "algorithm.method is nash_md, whose workers sample with the reference at hand; set rollout.reference: true"
            )
        self.settings.model.check(self.settings.model_kind)
        if self.settings.model.first is not None:
            self.settings.preferences.judge(settings.environment)

    def begin(self, system: "System") -> None:
        """See `Algorithm.begin`: fit the model, or take the folder's."""
        settings = self.settings
        self._learned.begin(
            system, lambda contexts: parted_pairs(system, contexts, settings.preferences, settings.feedback)
        )

    def iterate(self, system: "System") -> None:
        """One pass of the loop."""
        settings = self.settings
        logged = system.rollout(settings.contexts, settings.samples)
        states = logged.states(settings.states)
        responses = system.respond(states, settings.responses)
        penalty = KL(coefficient=settings.alpha, kind="k1", place="reward", reference="initial")
        improvement = settings.improvement.model_copy(update={"kl": penalty})
        conversations = logged.window(1)
        responses, scores = scored(system, responses, self._scores(system, conversations, states, responses))
        system.learn(improvement, conversations, responses, scores, metrics="improve")
        system.publish()

    def _scores(
        self, system: "System", conversations: Ref[pa.Table], states: "States", responses: Ref[pa.Table]
    ) -> Ref[np.ndarray]:
        """Every response's score."""
        settings = self.settings
        if settings.method == "rlhf":
            return system.learn(ResponseRewards(), conversations, responses)[0]
        opponents = system.respond(states, settings.responses, settings.tau, stream="opponent")
        pairs: Ref[pa.Table] = matched.remote(conversations, responses, opponents)
        preferred, _ = system.learn(Preferences(settings.model_kind), pairs)
        return first_members(pairs, preferred)[1]
