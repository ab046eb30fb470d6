"""What the learner is asked to do: settings of its methods, the defaults vetted on the tiny model (0.5 M parameters).

Learning rates for other sizes are smaller: about 1e-5 for a hundred million parameters, 1e-6 for billions.
"""

from typing import Literal

from pydantic import Field, model_validator

from mtrl_ray.settings.section import Section


class KL(Section):
    """The penalty for leaving a reference policy."""

    coefficient: float = Field(0.01, ge=0)
    """β, in units of the score per nat; 0: none, the divergence is only measured."""
    kind: Literal["k1", "k2", "k3"] = "k1"
    """Schulman's estimators: k1 = log π/π_ref (unbiased), k2 = k1²/2, k3 = e^-k1 - 1 + k1 (unbiased, positive)."""
    place: Literal["reward", "loss"] = "reward"
    """`reward`: subtracted from each token's reward, before advantages; `loss`: added to the policy's loss."""
    reference: Literal["initial", "current"] = "initial"
    """`initial`: the policy before its first improvement; `current`: as it was at the last `anchor()`."""

    @model_validator(mode="after")
    def _has_gradient(self) -> "KL":
        if self.place == "loss" and self.kind == "k1" and self.coefficient > 0:
            raise ValueError("k1 as a loss has no gradient on average; use k2 or k3, or place: reward")
        return self


class PolicyUpdate(Section):
    """Steps on the clipped surrogate, whatever the advantages are: see `updates`."""

    objective: Literal["clipped", "plain"] = "clipped"
    """`clipped`: PPO's surrogate; `plain`: -A log π, which the clips below do not concern."""
    epochs: int = Field(2, ge=1)
    """Passes over the data."""
    minibatches: int = Field(4, ge=1)
    """Steps per pass; what belongs to one conversation stays together."""
    learning_rate: float = Field(5e-4, gt=0)
    clip_low: float = Field(0.2, ge=0, lt=1)
    clip_high: float = Field(0.2, ge=0)
    dual_clip: float | None = Field(None, gt=1)
    """Bound of the loss where the advantage is negative, in advantages; None: unbounded."""
    entropy_bonus: float = Field(0.0, ge=0)
    """Weight of the entropy, per nat."""
    kl: KL = KL()
    previous_kl: float = Field(0.0, ge=0)
    """Weight of KL(π‖π_old) in the loss (k2), π_old the policy that this improvement started from: the proximal term of
    mirror descent, 1/η."""
    kl_stop: float | None = Field(None, gt=0)
    """Nats per token between the policy and the one that this improvement started from, at which its steps end."""
    max_gradient_norm: float | None = Field(1.0, gt=0)
    importance_cap: float | None = Field(2.0, gt=0)
    """Largest weight π_learner/π_sampler of tokens sampled by other weights, in another precision, or by a mixture with the
    reference; None: none."""
    mixture: float = Field(0.0, ge=0, le=1)
    """The reference's share τ in the geometric mixture that sampled: above 0 the samples are not the policy's own."""
    temperature: float = Field(1.0, gt=0)
    """The sampler's: log-probabilities are those of the distribution that was sampled."""


class Improvement(PolicyUpdate):
    """Single-turn policy improvement at token level (2511.21638 §2.3)."""

    estimator: Literal["ppo", "grpo", "reinforce"] = "ppo"
    """`ppo`: token critic and GAE; `grpo`: score standardised among those on its state; `reinforce`: score minus
    the mean of the others on its state, or minus the batch's where every state has one response."""
    critic_learning_rate: float = Field(1e-3, gt=0)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Per token, with no discount between the tokens of one response."""
    whiten: bool = True
    """Bring advantages to mean 0 and variance 1 over all tokens."""
    value_clip: float | None = Field(None, gt=0)
    """Range of the critic's values around the old ones, in units of their scale; None: unbounded."""
    aggregation: Literal["token", "response"] = "token"
    """Whether each token counts alike, or each response."""


class ConversationImprovement(PolicyUpdate):
    """Policy improvement on all agent tokens of whole conversations, their advantages given."""

    epochs: int = Field(1, ge=1)
    """Passes over the conversations."""
    kl: KL = KL(coefficient=1e-3, kind="k3", place="loss")
    """In the loss only: a penalty in the reward belongs to what makes the advantages."""
    entropy_bonus: float = Field(1e-3, ge=0)
    """Weight of the entropy, per nat."""
    aggregation: Literal["token", "turn", "conversation"] = "token"
    """Whether each token counts alike, each agent turn, or each conversation."""

    @model_validator(mode="after")
    def _kl_in_the_loss(self) -> "ConversationImprovement":
        if self.kl.place == "reward" and self.kl.coefficient > 0:
            raise ValueError("kl.place is reward, but the advantages are given; use place: loss with kind k2 or k3")
        return self


class ValueFit(Section):
    """Regression of a value model on returns, after its predictions have been used."""

    epochs: int = Field(2, ge=1)
    """Passes over the conversations."""
    minibatches: int = Field(4, ge=1)
    """Steps per pass."""
    learning_rate: float = Field(1e-3, gt=0)
    max_gradient_norm: float | None = Field(1.0, gt=0)


class PRMFit(Section):
    """The implicit process reward model, updated on each batch before it scores it (2603.23550)."""

    beta: float = Field(0.05, gt=0)
    """β of the token reward `β log π_φ/π_ref`."""
    epochs: int = Field(1, ge=1)
    """Passes over the batch."""
    minibatches: int = Field(8, ge=1)
    """Steps per pass."""
    learning_rate: float = Field(1e-3, gt=0)
    max_gradient_norm: float | None = Field(10.0, gt=0)


Scheme = Literal["outcome", "uniform", "value", "judge", "prime", "itpo", "norm_itpo"]
IMPLICIT: tuple[Scheme, ...] = ("prime", "itpo", "norm_itpo")
"""Schemes that score with the implicit process reward model."""
SPLITS: tuple[Scheme, ...] = ("uniform", "judge", "norm_itpo")
"""Schemes that give each turn a share of the score."""


class TurnRewards(Section):
    """How the outcome of a conversation becomes rewards of its turns (2603.23550)."""

    scheme: Scheme = "norm_itpo"
    """`outcome`: all of it with the last turn, so every turn shares it; `uniform`: split at random (Dirichlet);
    `value`: TD errors of a turn-level value model; `judge`: split by a judge's weights; `prime`: implicit rewards of
    tokens, the outcome with the last turn; `itpo`: the same summed per turn; `norm_itpo`: split by softmax weights of
    the turns' implicit rewards."""
    length_penalty: float = Field(5e-5, ge=0)
    """λ: what each of the agent's words costs, in units of the score."""
    eta: float = Field(0.4, gt=0)
    """Temperature η of the softmax of `norm_itpo`: small gives all to the best turn, large splits evenly."""
    length_normalised: bool = True
    """`norm_itpo`: softmax of a turn's mean token reward times the batch's mean turn length, as in the released code;
    false: of the turn's sum, as in the paper."""
    rescale: bool = True
    """Implicit rewards in units of the batch's largest return of them, so that a PRM that still learns, or a small β,
    does not decide how much they weigh."""
    outcome_weight: float = Field(1.0, ge=0)
    """Of the score, with the last turn, beside the implicit rewards of `prime` and `itpo`."""
    concentration: float = Field(1.0, gt=0)
    """Of the Dirichlet distribution of `uniform`; 1: every split is as likely as any other."""
    value: ValueFit = ValueFit()
    """The turn-level value model of `value`."""


class Advantages(Section):
    """How token rewards of whole conversations become token advantages; no discount."""

    estimator: Literal["ppo", "grpo", "rloo"] = "rloo"
    """`ppo`: token critic and GAE over all agent tokens; `grpo`, `rloo`: returns against those of the other
    conversations on the same context, standardised or left one out."""
    baseline: Literal["aligned", "pooled"] = "aligned"
    """Of `rloo`. `aligned`: the others' returns from the same turn on (from their last, where they ended earlier);
    `pooled`: the others' mean turn reward, taken from each turn's reward, as in the released code; it is biased where
    conversations differ in their number of turns."""
    gae_lambda: float = Field(1.0, ge=0, le=1)
    """Of `ppo`, per token."""
    whiten: bool = True
    """Bring advantages to mean 0 and variance 1 over all agent tokens."""
    critic: ValueFit = ValueFit()
    """The token critic of `ppo`."""

    @model_validator(mode="after")
    def _possible(self) -> "Advantages":
        if self.baseline == "pooled" and self.estimator != "rloo":
            raise ValueError(f"baseline is pooled and estimator is {self.estimator}; pooled belongs to rloo alone")
        return self


class TurnAdvantages(Section):
    """How one number per conversation becomes token advantages, with the KL to the reference inside: see `turn_values`."""

    value: Literal["turn", "token", "hybrid"] = "turn"
    """`turn`: one value per state before an agent turn (2405.14655 §4.1); `token`: a token critic; `hybrid`: the
    former across turns, the latter within."""
    alpha: float = Field(0.005, ge=0)
    """α, in units of the terminal reward per nat."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Per turn."""
    token_lambda: float = Field(0.99, ge=0, le=1)
    """Per token, of `token` and `hybrid`."""
    whiten: bool = True
    """Bring advantages to mean 0 and variance 1: of turns for `turn`, else of tokens."""
    fit: ValueFit = ValueFit()
    """Of every value model that takes part."""
    temperature: float = Field(1.0, gt=0)
    """The sampler's."""


PairModel = Literal["preference", "reward"]
"""A preference model reads two conversations, a Bradley-Terry reward model one: see `pair_models`."""


class PairFit(Section):
    """Regression of a preference or reward model on pairs of conversations (2405.14655 §4.1)."""

    epochs: int = Field(1, ge=1)
    """Passes over the pairs."""
    minibatches: int = Field(4, ge=1)
    """Steps per pass."""
    learning_rate: float = Field(5e-4, gt=0)
    max_gradient_norm: float | None = Field(1.0, gt=0)


class QFit(Section):
    """Regression of the response-level Q (2511.21638 §2.2)."""

    target: Literal["monte_carlo", "sarsa", "td_lambda", "expected"] = "monte_carlo"
    """`monte_carlo`: returns; `sarsa`: one-step backup along logged pairs; `td_lambda`: between the two; `expected`:
    backup from the mean Q of responses sampled in the next states, for data of another policy."""
    discount: float = Field(0.95, ge=0, le=1)
    """γ per agent turn."""
    td_lambda: float = Field(0.8, ge=0, le=1)
    """λ of the target `td_lambda`: 0 is sarsa, 1 is monte_carlo."""
    target_rate: float = Field(1.0, gt=0, le=1)
    """Share of the new weights that backups move to before each pass; 1: backups use the weights at its start."""
    epochs: int = Field(4, ge=1)
    """Passes over the conversations."""
    minibatch_conversations: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_gradient_norm: float | None = Field(1.0, gt=0)
    evaluated_conversations: int = Field(512, ge=0)
    """At most so many conversations are predicted before they are first fitted, for r and the calibration error."""


class Supervision(Section):
    """Maximum likelihood on the agent's tokens."""

    steps: int | None = Field(None, ge=1)
    """Steps; None: `epochs` passes over the conversations."""
    epochs: int = Field(1, ge=1)
    seconds: float | None = Field(None, gt=0)
    """Wall-clock bound; None: none. A run that it ends is not reproducible to the bit."""
    minibatch_conversations: int = Field(32, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    """The largest; linear warm-up, then a cosine down to a tenth."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps."""
    weight_decay: float = Field(0.01, ge=0)
    max_gradient_norm: float | None = Field(1.0, gt=0)
