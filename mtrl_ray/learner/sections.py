"""Settings that several operations share. The defaults are vetted on the tiny model (0.5 M parameters).

Learning rates for other sizes are smaller: about 1e-5 for a hundred million parameters, 1e-6 for billions.
"""

from typing import Literal

from pydantic import Field, model_validator

from mtrl_ray.learner.compute.optimisation import Step
from mtrl_ray.settings.section import Section


class Epochs(Section):
    """Optimiser steps over several passes."""

    epochs: int = Field(2, ge=1)
    """Passes over the data."""
    learning_rate: float = Field(1e-3, gt=0)
    max_gradient_norm: float | None = Field(1.0, gt=0)
    """Euclidean norm that gradients are clipped to; None: no clipping."""

    @property
    def step(self) -> Step:
        """One optimiser step with these settings."""
        return Step(self.learning_rate, self.max_gradient_norm)


class Fit(Epochs):
    """Passes in minibatches of a fixed size: a larger batch takes more steps, not larger ones."""

    minibatch_conversations: int = Field(64, ge=1)
    """Conversations per optimiser step at most (pairs, if pairs are fitted); what belongs to one stays together."""


class KL(Section):
    """The penalty for leaving a reference policy."""

    coefficient: float = Field(0.01, ge=0)
    """β, in units of the score per nat; 0: none, the divergence is only measured."""
    kind: Literal["k1", "k2", "k3"] = "k1"
    """Schulman's estimators: k1 = log π/π_ref (unbiased), k2 = k1²/2, k3 = e^-k1 - 1 + k1 (unbiased, positive)."""
    place: Literal["reward", "loss"] = "reward"
    """`reward`: subtracted from each token's reward, before advantages; `loss`: added to the policy's loss."""
    reference: Literal["initial", "current"] = "initial"
    """`initial`: the policy before its first improvement; `current`: the policy at the last `Snapshot`."""

    @model_validator(mode="after")
    def _has_gradient(self) -> "KL":
        if self.place == "loss" and self.kind == "k1" and self.coefficient > 0:
            raise ValueError("k1 as a loss has no gradient on average; use k2 or k3, or place: reward")
        return self
