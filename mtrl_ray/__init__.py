"""mtrl-ray: train conversational LLM policies on what a whole conversation achieves.

1. What stands in `__all__` is the public interface. Each name is imported when it is first used: `import mtrl_ray` takes
   milliseconds and needs neither torch nor Ray.
2. Threads sleep while they wait for each other: on cores that rollout workers and learners share, threads that spin (the
   default of OpenMP) cost up to ten times the work itself. OpenMP reads the setting when torch is first imported.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtrl_ray.settings.version import __version__

if TYPE_CHECKING:
    from mtrl_envs.base import Agent, Context, Environment, Outcome, Reply, User
    from mtrl_ray.algorithms.base import Algorithm
    from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn
    from mtrl_ray.errors import CheckpointError, ConfigurationError, DataError, EngineError, MtrlError
    from mtrl_ray.learner.operation import Operation
    from mtrl_ray.run.api import Run, evaluate, load, train
    from mtrl_ray.run.evaluating import Evaluation
    from mtrl_ray.settings.section import Section
    from mtrl_ray.statistics.estimates import Estimate

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_PLACES = {
    "mtrl_envs.base": ("Agent", "Context", "Environment", "Outcome", "Reply", "User"),
    "mtrl_ray.algorithms.base": ("Algorithm",),
    "mtrl_ray.dialogue.conversation": ("Conversation", "Role", "StopReason", "Turn"),
    "mtrl_ray.errors": ("CheckpointError", "ConfigurationError", "DataError", "EngineError", "MtrlError"),
    "mtrl_ray.learner.operation": ("Operation",),
    "mtrl_ray.run.api": ("Run", "evaluate", "load", "train"),
    "mtrl_ray.run.evaluating": ("Evaluation",),
    "mtrl_ray.settings.section": ("Section",),
    "mtrl_ray.statistics.estimates": ("Estimate",),
}
"""Public names by the module that has them."""

__all__ = [
    "Agent",
    "Algorithm",
    "CheckpointError",
    "ConfigurationError",
    "Context",
    "Conversation",
    "DataError",
    "EngineError",
    "Environment",
    "Estimate",
    "Evaluation",
    "MtrlError",
    "Operation",
    "Outcome",
    "Reply",
    "Role",
    "Run",
    "Section",
    "StopReason",
    "Turn",
    "User",
    "__version__",
    "evaluate",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    module = next((module for module, names in _PLACES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module 'mtrl_ray' has no attribute {name!r}; it has {', '.join(__all__)}")
    found = globals()[name] = getattr(import_module(module), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
