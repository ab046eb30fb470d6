"""Preference and reward models between a judge and the policy: how an algorithm gets its model.

1. `folder`: one that `mtrl fit-preferences` made. `first`: one fitted before the first iteration, on pairs of the initial
   policy's conversations that the judge compares then (offline, as in 2405.14655 §4.1). Else one that has learned nothing.
2. `refresh`: whether each iteration's pairs are compared too, and the model is updated on them before it scores them.
3. The first fit is on contexts of its own; the last of them are only predicted, so that `held_out_pairs/` has the accuracy
   and calibration of the very model that the policy then learns from.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.feedback.offline_pairs import Compared, divided
from mtrl_ray.learner.methods.pair_models import PairFit, PairModel, PairQuality
from mtrl_ray.models.value import HEAD_FILE
from mtrl_ray.processes.refs import Ref
from mtrl_ray.settings.section import Section

if TYPE_CHECKING:
    from mtrl_ray.system.system import System


class FirstFit(Section):
    """The model's fit before the first iteration."""

    contexts: int = Field(512, ge=8)
    """Training contexts that no iteration uses, with two conversations each."""
    held_out: float = Field(0.2, gt=0, lt=1)
    """Share of the pairs that the model is not fitted on, and measured with."""
    fit: PairFit = PairFit(epochs=4)


class LearnedSettings(Section):
    """A preference model or a reward model between the judge and the policy."""

    folder: str | None = None
    """What `mtrl fit-preferences --save` wrote: the models to begin with."""
    first: FirstFit | None = None
    """Fit the model before the first iteration. None: begin with the folder's, or with one that has learned nothing."""
    refresh: bool = False
    """Whether the judge compares each iteration's pairs, and the model is updated on them before it scores them."""
    fit: PairFit = PairFit()
    """The fit of one refresh."""

    @model_validator(mode="after")
    def _learns(self) -> "LearnedSettings":
        if self.folder is None and self.first is None and not self.refresh:
            raise ValueError("model has neither a folder, nor first, nor refresh; it would never learn anything")
        if self.folder is not None and self.first is not None:
            raise ValueError("model has a folder and first; it begins with one of them")
        return self

    def check(self, kind: PairModel) -> None:
        """Raises ConfigurationError if the folder has no such model."""
        if self.folder is not None and not (Path(self.folder) / kind / HEAD_FILE).is_file():
            raise ConfigurationError(
                f"algorithm.model.folder is {self.folder!r}, which has no {kind} model; mtrl fit-preferences --save makes one"
            )


class Learned:
    """The model of one run."""

    def __init__(self, settings: LearnedSettings, kind: PairModel) -> None:
        self._settings, self._kind = settings, kind

    def begin(self, system: "System", compared: Callable[[int], Compared]) -> None:
        """Adopt the folder's model, or fit one on the compared pairs of so many contexts."""
        if self._settings.folder is not None:
            system.adopt(self._kind, str(Path(self._settings.folder) / self._kind))
        first = self._settings.first
        if first is not None:
            seen, held_out = divided(*compared(first.contexts), 1.0 - first.held_out)
            self._fit(system, *seen, first.fit)
            system.learn(PairQuality(self._kind), *held_out, metrics="held_out_pairs")

    def refresh(self, system: "System", pairs: Ref[pa.Table], preferred: Ref[np.ndarray]) -> None:
        """Update the model on an iteration's compared pairs, if the settings say so."""
        if self._settings.refresh:
            self._fit(system, pairs, preferred, self._settings.fit)

    def _fit(self, system: "System", pairs: Ref[pa.Table], preferred: Ref[np.ndarray], fit: PairFit) -> None:
        system.learn(fit, pairs, preferred, self._kind, metrics=f"{self._kind}_model")
