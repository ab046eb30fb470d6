"""Operations that a learner runs.

An operation is one file: its settings, what it reads, what it returns, and its computation (`run`). `LearnerGroup.run` and
`System.learn` take any operation; a new one, or a new loss, changes nothing else. An operation that a recipe configures is a
`Section` too, any other is a frozen dataclass. Either is pickled to the learner processes, so its module has to be importable
there.

`run` gets the learner's `Core` and the arguments of the call: Arrow tables (one or several), arrays, plain values, None. It is
called on every process with the same arguments, has to do the same on each, and leaves the same models on each
(`compute.core`). It returns a value and numbers. The value (an array, a table, or None) is for the next operation, the numbers
are metrics. The caller gets those of the first process.

    class SquaredValues(Fit, Operation[None]):
        def run(self, core: Core, conversations: Tables) -> tuple[None, Numbers]:
            rows = turn_ends(Dialogues.read(conversations))
            core.models.value("second_q")
            step = lambda selection: core.update("second_q", rows, selection, my_loss, self.step)
            return None, means(run_epochs(rows, core.generator("second_q"), self, step))
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

if TYPE_CHECKING:
    from mtrl_ray.learner.compute.core import Core

Numbers = dict[str, float]
"""Metrics by name."""

ValueT = TypeVar("ValueT")


class Operation(ABC, Generic[ValueT]):
    """See the module's docstring; `ValueT` is the type of the value."""

    doing: ClassVar[str] = ""
    """What the live view shows while it runs, such as "fitting Q"; empty: nothing."""

    @abstractmethod
    def run(self, core: "Core", /, *arguments: Any, **named: Any) -> tuple[ValueT, Numbers]:
        """Run on one process; returns the value and the numbers. Raises DataError or ConfigurationError for wrong arguments."""
