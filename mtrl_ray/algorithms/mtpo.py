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
`reward`, the task's own score (policy gradient on the true reward). `nash_md` plays against the mixture instead of itself
(Nash-MD, 2312.00886): only the policy's own conversations are learned from. `best_response` trains against the reference:
begun from a finished policy, with α = 0, its win rate says how far that policy is from an equilibrium. `model` puts a
learned preference model in the place of the judge. `kl_target` steers α, so that variants can be compared at equal KL.

What the paper leaves open are settings: how values of turns and tokens go together (`advantages.value`), the mirror
descent's KL(π‖π_t), which its deep version drops (`improvement.previous_kl`), preferences that err (`preferences.flip`).
`improvement.objective: plain` is the paper's loss; the default is PPO's surrogate, the same at the first step of an
iteration. `improvement.decay` shortens the steps as the theorems' η_t does.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from mtrl_ray.algorithms.base import Algorithm, AlgorithmSettings
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.feedback.learned import Learned, LearnedSettings
from mtrl_ray.feedback.offline_pairs import whole_pairs
from mtrl_ray.feedback.preferences import (
    Pairing,
    PreferenceSettings,
    averaged,
    compare_pairs,
    first_members,
    pair_up,
    scored,
)
from mtrl_ray.learner.methods.conversations import ConversationImprovement
from mtrl_ray.learner.methods.pair_models import ConversationRewards, PairModel, Preferences
from mtrl_ray.learner.methods.turn_advantages import TurnAdvantages
from mtrl_ray.learner.sections import KL
from mtrl_ray.processes.refs import Ref
from mtrl_ray.settings.section import Section

if TYPE_CHECKING:
    from mtrl_ray.settings.tree import Settings
    from mtrl_ray.system.system import System

ONE_SIDED = ("nash_md", "best_response")
"""Variants whose second samples are an opponent's, from which nothing is learned."""
GAIN, CLIP, RANGE = 0.3, 1.0, 30.0
"""Of the controller of α: exponent, largest |log(KL / target)| that counts, and how far α may leave its start, as a factor."""


def steered(alpha: float, start: float, kl: float, target: float) -> float:
    """α for the next iteration: larger if the KL is above its target (an integral controller in log α, with bounds)."""
    error = float(np.clip(np.log(max(kl, 1e-9) / target), -CLIP, CLIP))
    return float(np.clip(alpha * np.exp(GAIN * error), start / RANGE, start * RANGE))


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
    """The `algorithm:` section; every two of a context's conversations are compared."""

    variant: Literal["mtpo", "mtpo_tau", "nash_md", "rlhf", "reward", "best_response"] = "mtpo"
    """`mtpo`: preferences between the policy's conversations; `mtpo_tau`: between those of its mixture with the reference;
    `nash_md`: between a conversation of the policy and one of the mixture, and only the policy's are learned from;
    `rlhf`: a reward model's score; `reward`: the task's score; `best_response`: between a conversation of the policy
    and one of the reference, and only the policy's are learned from."""
    alpha: float = Field(0.005, ge=0)
    """α, the weight of KL(π‖μ), in units of the terminal reward per nat."""
    kl_target: float | None = Field(None, gt=0)
    """Steer α from iteration to iteration so that KL(π‖μ) becomes this many nats per conversation, as is needed to compare
    algorithms at equal distance from μ; `alpha` is where it begins. None: α is constant."""
    tau: float = Field(0.0375, gt=0, le=1)
    """τ, the reference's share in the mixture of `mtpo_tau` and `nash_md`."""
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
        if self.kl_target is not None and self.alpha == 0:
            raise ValueError("kl_target is set and alpha is 0, which no factor can change; give the α to begin with")
        if self.pairs and self.samples < 2:
            raise ValueError(
                f"samples is {self.samples} and variant is {self.variant}, which compares conversations; use at least 2"
            )
        if self.variant in ONE_SIDED and self.samples % 2:
            raise ValueError(
                f"samples is {self.samples} and variant is {self.variant}, whose every second sample is an opponent's; use an "
                "even number"
            )
        return self

    @property
    def mixtures(self) -> tuple[float, ...]:
        """The reference's share in what is sampled, by sample."""
        shares = {"mtpo_tau": (self.tau,), "nash_md": (0.0, self.tau), "best_response": (0.0, 1.0)}
        return shares.get(self.variant, (0.0,))

    @property
    def judges(self) -> bool:
        """Whether the conversations of every iteration are compared."""
        return self.variant != "reward" and (self.model is None or self.model.refresh)

    @property
    def pairs(self) -> bool:
        """Whether conversations come in pairs."""
        return self.variant in ("mtpo", "mtpo_tau", *ONE_SIDED) or self.judges

    @property
    def pairing(self) -> Pairing:
        """Which conversations of a context are compared."""
        return "across" if self.variant in ONE_SIDED else "every"

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
        self._alpha = settings.alpha

    def state(self) -> dict[str, Any]:
        """See `Algorithm.state`: α, if it is steered."""
        return {} if self.settings.kl_target is None else {"alpha": self._alpha}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Algorithm.restore`."""
        self._alpha = float(state.get("alpha", self.settings.alpha))

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
        alpha = self._alpha
        advantages, made = system.learn(settings.advantages, conversations, terminal, alpha, metrics="advantages")
        if system.iteration >= settings.critic_warmup:
            if settings.kl_target is not None:
                numbers = system.fetch(made, "the advantages")
                self._alpha = steered(alpha, settings.alpha, numbers["kl_conversation"], settings.kl_target)
            to_reference = KL(coefficient=alpha, kind="k2", place="loss")
            rate = settings.improvement.rate(system.iteration - settings.critic_warmup)
            loss = settings.improvement.model_copy(update={"kl": to_reference, "learning_rate": rate})
            system.learn(loss, conversations, advantages, made, settings.mixtures[0], metrics="improve")
            system.publish()

    def _ended(self, system: "System", conversations: Ref[pa.Table]) -> tuple[Ref[pa.Table], Ref[np.ndarray] | None]:
        """The conversations that have a terminal reward, and these rewards; None: their scores."""
        settings, preferred = self.settings, None
        if settings.pairs:
            conversations = pair_up(system, conversations, settings.pairing)
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
        """What the policy learns from: all of it, or its own half if the other is an opponent's; each conversation once."""
        settings = self.settings
        if terminal is None:
            return conversations, None
        if settings.variant in ONE_SIDED:
            conversations, terminal = first_members(conversations, terminal)
        return averaged(conversations, terminal) if settings.pairs else (conversations, terminal)
