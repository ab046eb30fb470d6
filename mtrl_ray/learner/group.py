"""The learners as Ray actors: one, or several that share every step and together give the same result as one.

`LearnerGroup` starts `learner.processes` actors, and `wait` waits for them. With more than one, rank 0 opens a meeting point on
a free port of its node, and all join one torch.distributed group; with one there is no group.

`run` hands any `Operation` to all ranks with the same arguments; each rank fetches the tables that are given as refs. It
returns at once with the refs of rank 0's value and numbers. An actor runs its calls in order. If a rank fails, the sums of its
partners fail with an EngineError, at the latest after `COLLECTIVE_SECONDS`, and so does the result.
"""

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from mtrl_ray.errors import EngineError
from mtrl_ray.learner.operation import Numbers, Operation, ValueT
from mtrl_ray.processes.failures import root_cause
from mtrl_ray.processes.preloading import learner_options
from mtrl_ray.processes.refs import Ref
from mtrl_ray.processes.small_tasks import small_task
from mtrl_ray.processes.starting import without_collecting
from mtrl_ray.processes.waiting import ANSWER_SECONDS, responsive
from mtrl_ray.settings.tree import LearnerSettings, ModelSettings

if TYPE_CHECKING:
    from mtrl_ray.weights.packed import PackedWeights  # with torch

COLLECTIVE_SECONDS = 300.0
"""Deadline of every sum over the processes: longer than the slowest rank's share of a step may lag behind."""

START_SECONDS = 180.0
"""Deadline for the actors' start: imports, the model, the group."""


class LearnerActor:
    """One rank. Wrapped as a Ray actor by `LearnerGroup`; `Learner` does the work."""

    def __init__(
        self,
        settings: LearnerSettings,
        model: ModelSettings,
        policy: str,
        seed: int,
        temperature: float,
        rank: int,
        seconds: float,
    ) -> None:
        self._arguments = (settings, policy, model.dtype, seed)
        self._temperature = temperature
        self._rank, self._world, self._seconds = rank, settings.processes, seconds
        self._store: Any = None
        self._learner: Any = None

    def open(self) -> tuple[str, int]:
        """Rank 0: a meeting point on this node, as (host, port)."""
        from mtrl_ray.learner.compute.collective import listen

        host = ray.util.get_node_ip_address()
        self._store = listen(host, self._world, self._seconds)
        return host, self._store.port

    def start(self, meeting: tuple[str, int] | None) -> int:
        """Meet the other ranks, load the policy; this process. Raises EngineError, CheckpointError, ConfigurationError."""
        with without_collecting():
            from mtrl_ray.learner.learner import Learner

            gc.freeze()  # later searches leave out what has been imported

        self._learner = Learner(*self._arguments, self._meet(meeting), self._temperature)
        return os.getpid()

    def _meet(self, meeting: tuple[str, int] | None) -> Any:
        from mtrl_ray.learner.compute.collective import connect, join
        from mtrl_ray.learner.learner import pick_device

        if meeting is None:
            return None
        store = self._store or connect(*meeting, self._world, self._seconds)
        return join(store, self._rank, self._world, pick_device(self._arguments[0]), self._seconds)

    def ready(self) -> None:
        """Returns when all earlier calls are done."""

    def run(self, operation: Operation[Any], *arguments: Any) -> tuple[Any, Any]:
        """Run an operation; the result of rank 0 alone."""
        result = operation.run(self._learner.core, *arguments)
        return result if self._rank == 0 else (None, None)

    def call(self, method: str, *arguments: Any) -> Any:
        """A method of `Learner`; the result of rank 0 alone. A pair becomes two refs if the caller sets `num_returns=2`."""
        result = getattr(self._learner, method)(*arguments)
        if self._rank == 0:
            return result
        return (None, None) if isinstance(result, tuple) else None


class LearnerGroup:
    """All ranks, as one learner whose methods return refs. Tables may be given as refs. `temperature`: the sampler's."""

    def __init__(
        self,
        settings: LearnerSettings,
        model: ModelSettings,
        policy: str | Path,
        seed: int = 0,
        collective_seconds: float = COLLECTIVE_SECONDS,
        temperature: float = 1.0,
    ) -> None:
        """Start the actors; returns at once."""
        actor = ray.remote(LearnerActor).options(
            num_cpus=settings.cpus, num_gpus=settings.gpus, **learner_options(settings)
        )
        self._actors = [
            actor.remote(settings, model, str(policy), seed, temperature, rank, collective_seconds)
            for rank in range(settings.processes)
        ]
        meeting = self._actors[0].open.remote() if settings.processes > 1 else None
        self._started = [one.start.remote(meeting) for one in self._actors]
        self.processes: list[int] = []

    def wait(self) -> None:
        """Until the actors are ready; `processes` has the number of each then. Raises EngineError past the deadline."""
        try:
            self.processes = ray.get(self._started, timeout=START_SECONDS)
        except ray.exceptions.GetTimeoutError:
            count = len(self._actors)
            self.stop()
            raise EngineError(
                f"{count} learner processes were not ready after {START_SECONDS:g} s; "
                "does the cluster have the CPUs and GPUs that learner.cpus and learner.gpus ask for?"
            ) from None
        except ray.exceptions.RayTaskError as error:
            self.stop()
            raise root_cause(error) from None
        except ray.exceptions.RayActorError as error:
            self.stop()
            raise EngineError(f"a learner process died while it started: {error}") from None

    def run(self, operation: Operation[ValueT], *arguments: object) -> tuple[Ref[ValueT], Ref[Numbers]]:
        """Refs of the operation's value and numbers."""
        results = [actor.run.options(num_returns=2).remote(operation, *arguments) for actor in self._actors]
        value, numbers = results[0]
        return value, numbers

    def _call(self, method: str, *arguments: Any) -> Any:
        results = [actor.call.remote(method, *arguments) for actor in self._actors]
        return results[0]

    def adopt(self, model: str, folder: str | Path) -> Ref[None]:
        """See `Learner.adopt`, for a folder that every rank sees; the ref is ready when all have read it."""
        adopted: Ref[None] = _all.remote(*[actor.call.remote("adopt", model, str(folder)) for actor in self._actors])
        return adopted

    def weights(self, version: int) -> "Ref[PackedWeights]":
        """Ref of the policy's `PackedWeights`, owned by the caller."""
        weights: Ref[PackedWeights] = self._call("weights", version)
        return weights

    def packed(self, version: int) -> "tuple[Ref[PackedWeights], Ref[int]]":
        """Refs of the policy's `PackedWeights` and of their size in bytes, by which it is known that they are there."""
        results = [actor.call.options(num_returns=2).remote("packed", version) for actor in self._actors]
        weights, size = results[0]
        return weights, size

    def failed(self) -> bool:
        """Whether one of them failed while it started, or they have started and are not `responsive`; for an idle group."""
        ready, _ = ray.wait(self._started, num_returns=len(self._started), timeout=0)
        try:
            ray.get(ready)
        except ray.exceptions.RayError:
            return True
        return len(ready) == len(self._started) and not self.responsive(ANSWER_SECONDS)

    def responsive(self, seconds: float) -> bool:
        """Whether every process is alive and finishes its calls in time; false as soon as one is lost."""
        return bool(self._actors) and responsive([actor.ready.remote() for actor in self._actors], seconds)

    def save(self, folder: str | Path) -> Ref[None]:
        """See `Learner.save`; the ref is ready when the files are written. The folder has to be rank 0's to write."""
        written: Ref[None] = self._call("save", str(folder))
        return written

    def load(self, folder: str | Path) -> Ref[None]:
        """See `Learner.load`; the ref is ready when every rank has read the folder, which all of them have to see."""
        read: Ref[None] = _all.remote(*[actor.call.remote("load", str(folder)) for actor in self._actors])
        return read

    def stop(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []


@small_task()
def _all(*results: Any) -> None:
    """Done when all of them are; fails if one of them failed."""
