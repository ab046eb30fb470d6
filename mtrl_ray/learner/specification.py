"""What the learner is asked to do: settings of its methods, the defaults vetted on the tiny model (0.5 M parameters).

Learning rates for other sizes are smaller: about 1e-5 for a hundred million parameters, 1e-6 for billions.
"""

from typing import Literal

from pydantic import Field, model_validator

from mtrl_ray.config import Section


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


class Improvement(Section):
    """Single-turn policy improvement at token level (2511.21638 §2.3)."""

    estimator: Literal["ppo", "grpo", "reinforce"] = "ppo"
    """`ppo`: token critic and GAE; `grpo`: score standardised among those on its state; `reinforce`: score minus
    the mean of the others on its state, or minus the batch's where every state has one response."""
    epochs: int = Field(2, ge=1)
    """Passes over the responses."""
    minibatches: int = Field(4, ge=1)
    """Steps per pass; the responses on one conversation's states stay together."""
    learning_rate: float = Field(5e-4, gt=0)
    critic_learning_rate: float = Field(1e-3, gt=0)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Per token, with no discount between the tokens of one response."""
    whiten: bool = True
    """Bring advantages to mean 0 and variance 1 over all tokens."""
    clip_low: float = Field(0.2, ge=0, lt=1)
    clip_high: float = Field(0.2, ge=0)
    dual_clip: float | None = Field(None, gt=1)
    """Bound of the loss where the advantage is negative, in advantages; None: unbounded."""
    value_clip: float | None = Field(None, gt=0)
    """Range of the critic's values around the old ones, in units of their scale; None: unbounded."""
    aggregation: Literal["token", "response"] = "token"
    """Whether each token counts alike, or each response."""
    entropy_bonus: float = Field(0.0, ge=0)
    """Weight of the entropy, per nat."""
    kl: KL = KL()
    kl_stop: float | None = Field(None, gt=0)
    """Nats per token between the policy and the one that this improvement started from, at which its steps end."""
    max_gradient_norm: float | None = Field(1.0, gt=0)
    importance_cap: float | None = Field(2.0, gt=0)
    """Largest weight π_learner/π_sampler of tokens sampled by other weights or in another precision; None: none."""
    temperature: float = Field(1.0, gt=0)
    """The sampler's: log-probabilities are those of the distribution that was sampled."""


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
