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
`reward`, the task's own score (policy gradient on the true reward). `model` puts a learned preference model in the place
of the judge.

What the paper leaves open are settings: how values of turns and tokens go together (`advantages.value`), the mirror
descent's KL(π‖π_t), which its deep version drops (`improvement.previous_kl`), preferences that err (`preferences.flip`).
`improvement.objective: plain` is the paper's loss; the default is PPO's surrogate, the same at the first step of an
iteration.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mtrl_ray.algorithms.base import Algorithm
from mtrl_ray.comparing import PreferenceSettings
from mtrl_ray.config import Section
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.learner.specification import KL, ConversationImprovement, PairFit, PairModel, TurnAdvantages
from mtrl_ray.models.value import HEAD_FILE

if TYPE_CHECKING:
    from mtrl_ray.config import Settings
    from mtrl_ray.system import System


class PolicyLoss(ConversationImprovement):
    """Steps on the policy's loss. Its KL is the algorithm's: `algorithm.alpha`."""

    entropy_bonus: float = Field(0.0, ge=0)
    """Weight of the entropy, per nat."""

    @model_validator(mode="after")
    def _kl_is_alpha(self) -> "PolicyLoss":
        if "kl" in self.model_fields_set:
            raise ValueError("kl is set by algorithm.alpha, the weight of KL(π‖μ) in rewards and loss alike")
        if "mixture" in self.model_fields_set:
            raise ValueError("mixture is set by algorithm.tau")
        return self


class LearnedSettings(Section):
    """A preference model (variants `mtpo`, `mtpo_tau`) or a reward model (variant `rlhf`) between the judge and the policy."""

    folder: str | None = None
    """What `mtrl fit-preferences --save` wrote: the models to begin with. None: ones that know nothing yet."""
    refresh: bool = False
    """Whether the judge compares each iteration's pairs, and the model is updated on them before it scores them."""
    fit: PairFit = PairFit()
    """Of one refreshment."""

    @model_validator(mode="after")
    def _learns(self) -> "LearnedSettings":
        if self.folder is None and not self.refresh:
            raise ValueError("model has neither a folder nor refresh; it would never learn anything")
        return self


class MTPOSettings(Section):
    """The `algorithm:` section."""

    name: Literal["mtpo"] = "mtpo"
    variant: Literal["mtpo", "mtpo_tau", "rlhf", "reward"] = "mtpo"
    """`mtpo`: preferences between the policy's conversations; `mtpo_tau`: between those of its mixture with the reference;
    `rlhf`: a reward model's score; `reward`: the task's score."""
    contexts: int = Field(64, ge=1)
    """Fresh training contexts per iteration."""
    samples: int = Field(2, ge=1)
    """Conversations per context; they are compared two by two."""
    alpha: float = Field(0.005, ge=0)
    """α, the weight of KL(π‖μ), in units of the terminal reward per nat."""
    tau: float = Field(0.0375, gt=0, le=1)
    """τ, the reference's share in the mixture of `mtpo_tau`."""
    critic_warmup: int = Field(4, ge=0)
    """Iterations in which values are fitted and the policy stays."""
    preferences: PreferenceSettings = PreferenceSettings()
    """Who compares conversations, where somebody is asked."""
    model: LearnedSettings | None = None
    """Of `rlhf` always; of `mtpo` and `mtpo_tau` where preferences are a model's. None: the judge's own."""
    advantages: TurnAdvantages = TurnAdvantages()
    improvement: PolicyLoss = PolicyLoss()

    @model_validator(mode="after")
    def _possible(self) -> "MTPOSettings":
        if "alpha" in self.advantages.model_fields_set:
            raise ValueError("advantages.alpha is algorithm.alpha; set it there")
        if self.variant == "rlhf" and self.model is None:
            raise ValueError("variant is rlhf, which needs a reward model; set model.folder, or model.refresh: true")
        if self.variant == "reward" and self.model is not None:
            raise ValueError("variant is reward, which takes the task's own score; leave model out")
        if self.pairs and self.samples % 2:
            raise ValueError(
                f"samples is {self.samples} and variant is {self.variant}; conversations are compared two by two: use an "
                "even number"
            )
        return self

    @property
    def mixture(self) -> float:
        """The reference's share in what is sampled."""
        return self.tau if self.variant == "mtpo_tau" else 0.0

    @property
    def judges(self) -> bool:
        """Whether somebody is asked about this run's conversations."""
        return self.variant != "reward" and (self.model is None or self.model.refresh)

    @property
    def pairs(self) -> bool:
        """Whether conversations come in pairs."""
        return self.variant in ("mtpo", "mtpo_tau") or self.judges

    @property
    def model_kind(self) -> PairModel:
        """Which model a learned one is."""
        return "reward" if self.variant == "rlhf" else "preference"


class MTPO(Algorithm[MTPOSettings]):
    """See the module's docstring."""

    settings_class: ClassVar[type[Section]] = MTPOSettings

    def __init__(self, settings: MTPOSettings) -> None:
        super().__init__(settings)
        self._adopted = False

    def check(self, settings: "Settings") -> None:
        """See `Algorithm.check`: a judge has to be there, and so have a mixture's reference and a model's folder."""
        if self.settings.mixture and not settings.rollout.reference:
            raise ConfigurationError(
                "algorithm.variant is mtpo_tau, whose workers sample with the reference at hand; set rollout.reference: true"
            )
        model, kind = self.settings.model, self.settings.model_kind
        if model is not None and model.folder is not None and not (Path(model.folder) / kind / HEAD_FILE).is_file():
            raise ConfigurationError(
                f"algorithm.model.folder is {model.folder!r}, which has no {kind} model; mtrl fit-preferences --save makes one"
            )
        if self.settings.judges:
            self.settings.preferences.judge(settings.environment)

    def iterate(self, system: "System") -> None:
        """One pass of the loop."""
        settings = self.settings
        logged = system.converse(settings.contexts, settings.samples, settings.mixture)
        conversations, terminal = self._ended(system, logged.window(1))
        regularised = settings.advantages.model_copy(update={"alpha": settings.alpha})
        advantages = system.turn_advantages(conversations, terminal, regularised)
        if system.iteration >= settings.critic_warmup:
            to_reference = KL(coefficient=settings.alpha, kind="k2", place="loss")
            loss = settings.improvement.model_copy(update={"kl": to_reference, "mixture": settings.mixture})
            system.improve_conversations(conversations, advantages, loss)
            system.publish()

    def _ended(self, system: "System", conversations: Any) -> tuple[Any, Any]:
        """The conversations that have a terminal reward, and these rewards; None: their scores."""
        settings, preferred = self.settings, None
        if settings.pairs:
            conversations = system.pairs(conversations)
        if settings.judges:
            conversations, preferred = system.compare(conversations, settings.preferences)
        if settings.model is None:
            return conversations, preferred
        return conversations, self._scored(system, conversations, preferred, settings.model)

    def _scored(self, system: "System", conversations: Any, preferred: Any, model: LearnedSettings) -> Any:
        """Terminal rewards as the learned model gives them, once it has seen what the judge said."""
        kind = self.settings.model_kind
        if model.folder is not None and not self._adopted:
            system.adopt(kind, str(Path(model.folder) / kind))
            self._adopted = True
        if model.refresh:
            system.fit_pairs(conversations, preferred, kind, model.fit)
        return system.rewards(conversations) if kind == "reward" else system.preferred(conversations, kind)
