"""Snapshot the policy as the reference `current` of KL penalties (`KL.reference`)."""

from dataclasses import dataclass

from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.operation import Numbers, Operation


@dataclass(frozen=True)
class Snapshot(Operation[None]):
    """No arguments, no numbers."""

    def run(self, core: Core) -> tuple[None, Numbers]:
        """See `References.take_current`."""
        core.references.take_current()
        return None, {}
