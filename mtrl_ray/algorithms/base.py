"""What an algorithm is: settings, and one iteration written in the system's terms.

An algorithm says what is collected, which models are fitted on which targets, and which improvement is applied; how
that is done on how many machines is the system's business (`mtrl_ray.system.system.System`).
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from mtrl_ray.settings.section import Section

if TYPE_CHECKING:
    from mtrl_ray.settings.tree import Settings
    from mtrl_ray.system.system import System

SettingsT = TypeVar("SettingsT", bound=Section)


class Algorithm(ABC, Generic[SettingsT]):
    """Subclass it in a file of its own and name it in `algorithms.registry`."""

    settings_class: ClassVar[type[Section]]
    """The `algorithm:` section of a recipe, `name` included."""

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings

    def check(self, settings: "Settings") -> None:
        """Refuse a run that cannot work with the rest of its settings. Raises ConfigurationError."""

    def begin(self, system: "System") -> None:
        """Called once in a run's life, before its first iteration, its actors running."""

    @abstractmethod
    def iterate(self, system: "System") -> None:
        """One iteration: collect, learn, publish. What is worth knowing goes into the system's metrics."""
