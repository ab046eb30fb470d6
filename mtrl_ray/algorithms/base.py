"""What an algorithm is: settings, and one iteration written in the system's terms.

An algorithm says what is collected, which models are fitted on which targets, and which improvement is applied; how
that is done on how many machines is the system's business (`mtrl_ray.system.system.System`).
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import Field

from mtrl_ray.settings.section import Section

if TYPE_CHECKING:
    from mtrl_ray.settings.tree import Settings
    from mtrl_ray.system.system import System

SettingsT = TypeVar("SettingsT", bound=Section)


class AlgorithmSettings(Section):
    """The `algorithm:` section of a recipe, as most algorithms have it."""

    name: str
    """A name of `algorithms.registry`, or `package.module:ClassName`."""
    contexts: int = Field(64, ge=1)
    """Fresh training contexts per iteration."""
    samples: int = Field(1, ge=1)
    """Conversations per context."""


class Algorithm(ABC, Generic[SettingsT]):
    """Subclass it in a file of its own; a recipe names it as `package.module:ClassName`, or by a name of `algorithms.registry`.

    It may bring learning operations and losses of its own (`learner.operation`), models under names of its own, and, if it
    keeps anything from one iteration to the next, `state` and `restore`.
    """

    settings_class: ClassVar[type[Section]]
    """The class of the `algorithm:` section, `name` included."""

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the algorithm itself, as JSON values: a learned coefficient, a schedule's place."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`; of a checkpoint that has none, from an empty one."""

    def check(self, settings: "Settings") -> None:
        """Refuse a run that cannot work with the rest of its settings. Raises ConfigurationError."""

    def begin(self, system: "System") -> None:
        """Called once in a run's life, before its first iteration, when its actors run."""

    @abstractmethod
    def iterate(self, system: "System") -> None:
        """One iteration: collect, learn, publish. What is worth knowing goes into the system's metrics."""
