"""What the policy is compared with: the two references of KL penalties, and the weights that the samplers have.

Each is known by the number of policy steps at which it was taken, so it is known without a comparison of weights whether the
policy is still the same. The references are frozen copies of the policy (`Models.frozen`).
"""

from typing import Any, Literal

import numpy as np

from mtrl_ray.learner.compute.models import Models

REFERENCE, ANCHOR = "reference", "anchor"
STATE = ("policy_steps", "referenced_at", "anchored_at", "published_version", "published_at")


class References:
    """`exact`: whether learner and samplers agree on log-probabilities to within 1e-5 (float32 on a CPU).

    `policy_steps` counts optimiser steps on the policy. `referenced_at` and `anchored_at` are its values when the references
    `initial` and `current` were taken, -1 before that; `published_at` when version `published_version` was published. The
    weights of the policy's folder are version 0.
    """

    def __init__(self, models: Models, exact: bool) -> None:
        self._models, self._exact = models, exact
        self.policy_steps = 0
        self.referenced_at = self.anchored_at = -1
        self.published_version = self.published_at = 0

    def before_policy_step(self) -> None:
        """Take the reference `initial` if there is none yet, and count the step."""
        self.keep_initial()
        self.policy_steps += 1

    def keep_initial(self) -> None:
        """Take the policy as the reference `initial` if there is none yet."""
        if self.referenced_at < 0:
            self._models.frozen(REFERENCE)
            self.referenced_at = self.policy_steps

    def forget_initial(self) -> None:
        """Drop the reference `initial`; the policy at its next improvement becomes the new one."""
        self._models.forget(REFERENCE)
        self.referenced_at = -1

    def take_current(self) -> None:
        """Take the policy as the reference `current`."""
        self._models.snapshot(ANCHOR)
        self.anchored_at = self.policy_steps

    def require(self, model: str) -> None:
        """Create the model of this name if it is a reference that is missing."""
        if model == REFERENCE:
            self.keep_initial()
        elif model == ANCHOR:
            self._models.frozen(ANCHOR)

    def name(self, reference: Literal["initial", "current"]) -> str:
        """Name of the model for a KL penalty's reference; `current` is taken now if it never was."""
        if reference == "current" and self.anchored_at < 0:
            self.take_current()
        return REFERENCE if reference == "initial" else ANCHOR

    def is_policy(self, reference: Literal["initial", "current"]) -> bool:
        """Whether the policy has not changed since it became that reference."""
        if self.name(reference) == ANCHOR:
            return self.policy_steps == self.anchored_at
        return self.referenced_at in (-1, self.policy_steps)

    def publish(self, version: int) -> None:
        """Note that the policy's weights are now published as this version."""
        self.published_version, self.published_at = version, self.policy_steps

    def sampled(self, versions: np.ndarray) -> bool:
        """Whether the present policy sampled all tokens of these versions: then the samplers' log-probabilities are its own."""
        unchanged = self._exact and self.published_at == self.policy_steps
        return unchanged and bool((versions == self.published_version).all())

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        return {name: getattr(self, name) for name in STATE}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for name in STATE:
            setattr(self, name, int(state[name]))
