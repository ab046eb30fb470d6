"""MTPO: multi-turn preference optimisation by self-play, with its relatives (2405.14655 §3, §4.1).

    μ = π_0 = the initial policy, kept as it was
    repeat
        D    = two conversations on each of a batch of contexts, held with π             (MTPO-τ: π^τ ∝ π^{1-τ} μ^τ)
        p    = P(conversation 1 ≻ conversation 2);  terminal rewards p and 1 - p
        Â    = GAE over turns with V_φ(s_h), rewards with  -α KL(π‖μ)[s_h]  inside, normalised over the batch
        V_φ  ← squared error to the λ-returns
        π    ← steps on  -Â log π(a|s) + α KL(π‖μ)[s]                      (not before the critic's head start is over)
    until done

`mtpo_tau` plays the geometric mixture π^τ against itself: Â and the KL inside are the mixture's, whose log-probabilities
the samples carry, and π steps on its samples with truncated importance weights.
Other variants replace what ends a conversation: `rlhf`, the score R of a Bradley-Terry reward model (multi-turn RLHF);
`reward`, the task's own score (policy gradient on the true reward). `best_response` trains against the reference instead
of itself: begun from a finished policy, with α = 0, its win rate says how far that policy is from an equilibrium. `model`
puts a learned preference model in the place of the judge.

What the paper leaves open are settings: how values of turns and tokens go together (`advantages.value`), the mirror
descent's KL(π‖π_t), which its deep version drops (`improvement.previous_kl`), preferences that err (`preferences.flip`).
`improvement.objective: plain` is the paper's loss; the default is PPO's surrogate, the same at the first step of an
iteration. `improvement.decay` shortens the steps as the theorems' η_t does.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from mtrl_ray.algorithms.base import Algorithm, AlgorithmSettings
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.feedback.learned import Learned, LearnedSettings
from mtrl_ray.feedback.offline_pairs import whole_pairs
from mtrl_ray.feedback.preferences import PreferenceSettings, compare_pairs, first_members, pair_up, scored
from mtrl_ray.learner.methods.conversations import ConversationImprovement
from mtrl_ray.learner.methods.pair_models import ConversationRewards, PairModel, Preferences
from mtrl_ray.learner.methods.turn_advantages import TurnAdvantages
from mtrl_ray.learner.sections import KL
from mtrl_ray.processes.refs import Ref
from mtrl_ray.settings.section import Section

if TYPE_CHECKING:
    from mtrl_ray.settings.tree import Settings
    from mtrl_ray.system.system import System


class PolicyLoss(ConversationImprovement, entropy_bonus=0.0):
    """Steps on the policy's loss. Its KL is the algorithm's: `algorithm.alpha`."""

    decay: float | None = Field(None, gt=0)
    """After so many improvements the learning rate has halved: η/(1 + n/decay), n = 0, 1, …; with 3 it shortens as the
    theorems' η_t = 2/(α(t+2)), t = 1, 2, …. Self-play on preferences that go in circles goes round with them if steps
    stay long. None: constant, as in the paper's experiments."""

    def rate(self, improvement: int) -> float:
        """The learning rate of the improvement with this number, from 0."""
        return self.learning_rate if self.decay is None else self.learning_rate / (1.0 + improvement / self.decay)

    @model_validator(mode="after")
    def _kl_is_alpha(self) -> "PolicyLoss":
        if "kl" in self.model_fields_set:
            raise ValueError("kl is set by algorithm.alpha, the weight of KL(π‖μ) in rewards and loss alike")
        return self


class MTPOSettings(AlgorithmSettings, name="mtpo", samples=2):
    """The `algorithm:` section; the conversations of a context are compared two by two."""

    variant: Literal["mtpo", "mtpo_tau", "rlhf", "reward", "best_response"] = "mtpo"
    """`mtpo`: preferences between the policy's conversations; `mtpo_tau`: between those of its mixture with the reference;
    `rlhf`: a reward model's score; `reward`: the task's score; `best_response`: between a conversation of the policy
    and one of the reference, and only the policy's are learned from."""
    alpha: float = Field(0.005, ge=0)
    """α, the weight of KL(π‖μ), in units of the terminal reward per nat."""
    tau: float = Field(0.0375, gt=0, le=1)
    """τ, the reference's share in the mixture of `mtpo_tau`."""
    critic_warmup: int = Field(4, ge=0)
    """Iterations in which values are fitted and the policy stays."""
    preferences: PreferenceSettings = PreferenceSettings()
    """Source of the preferences between conversations, if the algorithm compares any."""
    model: LearnedSettings | None = None
    """Of `rlhf` always; of `mtpo` and `mtpo_tau` if preferences are a model's. None: the judge's own."""
    advantages: TurnAdvantages = TurnAdvantages()
    improvement: PolicyLoss = PolicyLoss()

    @model_validator(mode="after")
    def _possible(self) -> "MTPOSettings":
        if self.variant == "rlhf" and self.model is None:
            raise ValueError(
                "variant is rlhf, which needs a reward model; set model.folder, model.first or model.refresh"
            )
        if self.variant == "reward" and self.model is not None:
            raise ValueError("variant is reward, which takes the task's own score; leave model out")
        if self.variant == "mtpo_tau" and self.improvement.importance_cap is None:
            raise ValueError(
                "improvement.importance_cap is null and variant is mtpo_tau, whose policy learns from the mixture's samples "
                "by importance weights; give a cap"
            )
        if self.pairs and self.samples % 2:
            raise ValueError(
                f"samples is {self.samples} and variant is {self.variant}; conversations are compared two by two: use an "
                "even number"
            )
        return self

    @property
    def mixtures(self) -> tuple[float, ...]:
        """The reference's share in what is sampled, by sample."""
        shares = {"mtpo_tau": (self.tau,), "best_response": (0.0, 1.0)}
        return shares.get(self.variant, (0.0,))

    @property
    def judges(self) -> bool:
        """Whether the conversations of every iteration are compared."""
        return self.variant != "reward" and (self.model is None or self.model.refresh)

    @property
    def pairs(self) -> bool:
        """Whether conversations come in pairs."""
        return self.variant in ("mtpo", "mtpo_tau", "best_response") or self.judges

    @property
    def model_kind(self) -> PairModel:
        """Which model a learned one is."""
        return "reward" if self.variant == "rlhf" else "preference"


class MTPO(Algorithm[MTPOSettings]):
    """See the module's docstring."""

    settings_class: ClassVar[type[Section]] = MTPOSettings

    def __init__(self, settings: MTPOSettings) -> None:
        super().__init__(settings)
        model = settings.model
        self._learned = None if model is None else Learned(model, settings.model_kind)

    def check(self, settings: "Settings") -> None:
        """See `Algorithm.check`: a judge has to be there, and so have a mixture's reference and a model's folder."""
        if any(self.settings.mixtures) and not settings.rollout.reference:
            raise ConfigurationError(
                f"algorithm.variant is {self.settings.variant}, whose workers sample with the reference at hand; "
                "set rollout.reference: true"
            )
        if self.settings.model is not None:
            self.settings.model.check(self.settings.model_kind)
        if self.settings.judges or (self.settings.model is not None and self.settings.model.first is not None):
            self.settings.preferences.judge(settings.environment)

    def begin(self, system: "System") -> None:
        """See `Algorithm.begin`: fit the model, or take the folder's."""
        if self._learned is not None:
            preferences = self.settings.preferences
            self._learned.begin(system, lambda contexts: whole_pairs(system, contexts, preferences))

    def iterate(self, system: "System") -> None:
        """One pass of the loop."""
        settings = self.settings
        logged = system.rollout(settings.contexts, settings.samples, settings.mixtures)
        conversations, terminal = self._own(*self._ended(system, logged.window(1)))
        advantages, made = system.learn(
            settings.advantages, conversations, terminal, settings.alpha, metrics="advantages"
        )
        if system.iteration >= settings.critic_warmup:
            to_reference = KL(coefficient=settings.alpha, kind="k2", place="loss")
            rate = settings.improvement.rate(system.iteration - settings.critic_warmup)
            loss = settings.improvement.model_copy(update={"kl": to_reference, "learning_rate": rate})
            system.learn(loss, conversations, advantages, made, settings.mixtures[0], metrics="improve")
            system.publish()

    def _ended(self, system: "System", conversations: Ref[pa.Table]) -> tuple[Ref[pa.Table], Ref[np.ndarray] | None]:
        """The conversations that have a terminal reward, and these rewards; None: their scores."""
        settings, preferred = self.settings, None
        if settings.pairs:
            conversations = pair_up(system, conversations)
        if settings.judges:
            conversations, preferred = compare_pairs(system, conversations, settings.preferences)
        if self._learned is None:
            return conversations, preferred
        if preferred is not None:
            self._learned.refresh(system, conversations, preferred)
        model = ConversationRewards() if settings.variant == "rlhf" else Preferences(settings.model_kind)
        terminal, _ = system.learn(model, conversations)
        return scored(system, conversations, terminal)

    def _own(
        self, conversations: Ref[pa.Table], terminal: Ref[np.ndarray] | None
    ) -> tuple[Ref[pa.Table], Ref[np.ndarray] | None]:
        """What the policy learns from: all of it, or its own half if the other is an opponent's."""
        if self.settings.variant != "best_response" or terminal is None:
            return conversations, terminal
        return first_members(conversations, terminal)
