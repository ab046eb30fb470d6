"""Small tasks on the driver's node: what a run does to its tables between the actors' calls.

Ray prefers the node where a task's tables lie, even if the run has no worker left there; with a task in every iteration that
node would never be idle, and no autoscaler would remove it. The driver's node has the store and the buffer anyway.
"""

from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class SmallTask:
    """A function that `remote` runs as a task on the caller's node, or elsewhere if that node is gone."""

    def __init__(self, function: Callable[..., Any], num_returns: int) -> None:
        self._task = ray.remote(num_cpus=0, num_returns=num_returns)(function)
        self.__doc__ = function.__doc__

    def remote(self, *arguments: Any) -> Any:
        """The ref of what the function returns, or `num_returns` of them."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        return self._task.options(scheduling_strategy=here).remote(*arguments)


def small_task(num_returns: int = 1) -> Callable[[Callable[..., Any]], SmallTask]:
    """Decorator for a function whose calls take no CPU worth reserving."""
    return lambda function: SmallTask(function, num_returns)
