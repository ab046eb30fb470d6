"""The learners as Ray actors: one, or several that compute shares of every step and give the result of one.

1. `LearnerGroup` starts `learner.processes` actors, `wait` waits for them. With more than one, rank 0 opens a meeting point on
   a free port of its node, and all join one torch.distributed group; with one there is no group.
2. Every method is called on all ranks with the same arguments, tables as object refs, which each rank fetches itself. It
   returns at once with the ref of rank 0's result; an actor works its calls off in order.
3. When a rank fails, its partners' sums fail with an EngineError (at the latest after `COLLECTIVE_SECONDS`), and so does
   the result.
"""

import gc
import os
from pathlib import Path
from typing import Any

import ray

from mtrl_ray.errors import EngineError
from mtrl_ray.learner.specification import (
    Advantages,
    ConversationImprovement,
    Improvement,
    PairFit,
    PairModel,
    PRMFit,
    QFit,
    Supervision,
    TurnAdvantages,
    TurnRewards,
)
from mtrl_ray.processes.failures import root_cause
from mtrl_ray.processes.preloading import learner_options
from mtrl_ray.processes.small_tasks import small_task
from mtrl_ray.processes.starting import without_collecting
from mtrl_ray.processes.waiting import ANSWER_SECONDS, sound
from mtrl_ray.settings.tree import LearnerSettings, ModelSettings

COLLECTIVE_SECONDS = 300.0
"""Deadline of every sum over the processes: longer than the slowest rank's share of a step may lag behind."""

START_SECONDS = 180.0
"""Deadline for the actors' start: imports, the model, the group."""


class LearnerActor:
    """One rank. Wrapped as a Ray actor by `LearnerGroup`; `Learner` does the work."""

    def __init__(
        self, settings: LearnerSettings, model: ModelSettings, policy: str, seed: int, rank: int, seconds: float
    ) -> None:
        self._arguments = (settings, policy, model.dtype, seed)
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

        self._learner = Learner(*self._arguments, collective=self._meet(meeting))
        return os.getpid()

    def _meet(self, meeting: tuple[str, int] | None) -> Any:
        from mtrl_ray.learner.compute.collective import connect, join
        from mtrl_ray.learner.learner import pick_device

        if meeting is None:
            return None
        store = self._store or connect(*meeting, self._world, self._seconds)
        return join(store, self._rank, self._world, pick_device(self._arguments[0]), self._seconds)

    def ready(self) -> None:
        """Answers once everything asked before is done."""

    def call(self, method: str, *arguments: Any) -> Any:
        """A method of `Learner`; only rank 0 gives its result."""
        result = getattr(self._learner, method)(*arguments)
        return result if self._rank == 0 else None

    def call_pair(self, method: str, *arguments: Any) -> tuple[Any, Any]:
        """A method of `Learner` that gives two things, which become two refs."""
        result = getattr(self._learner, method)(*arguments)
        return result if self._rank == 0 else (None, None)


class LearnerGroup:
    """All ranks, as one learner whose methods return refs. Tables may be given as refs."""

    def __init__(
        self,
        settings: LearnerSettings,
        model: ModelSettings,
        policy: str | Path,
        seed: int = 0,
        collective_seconds: float = COLLECTIVE_SECONDS,
    ) -> None:
        """Start the actors; returns at once."""
        actor = ray.remote(LearnerActor).options(
            num_cpus=settings.cpus, num_gpus=settings.gpus, **learner_options(settings)
        )
        self._actors = [
            actor.remote(settings, model, str(policy), seed, rank, collective_seconds)
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

    def _call(self, method: str, *arguments: Any) -> Any:
        results = [actor.call.remote(method, *arguments) for actor in self._actors]
        return results[0]

    def _call_pair(self, method: str, *arguments: Any) -> tuple[Any, Any]:
        results = [actor.call_pair.options(num_returns=2).remote(method, *arguments) for actor in self._actors]
        first, second = results[0]
        return first, second

    def fit_q(self, conversations: Any, specification: QFit, responses: Any = None) -> Any:
        """Ref of `Learner.fit_q`'s numbers."""
        return self._call("fit_q", conversations, specification, responses)

    def predict_q(self, conversations: Any, discount: float) -> Any:
        """Ref of `Learner.predict_q`'s table."""
        return self._call("predict_q", conversations, discount)

    def score(self, conversations: Any, responses: Any) -> Any:
        """Ref of Q of every response, float32 [responses]."""
        return self._call("score", conversations, responses)

    def response_rewards(self, conversations: Any, responses: Any) -> Any:
        """Ref of the reward model's score of every response, float32 [responses]."""
        return self._call("response_rewards", conversations, responses)

    def improve(self, conversations: Any, responses: Any, specification: Improvement, scores: Any = None) -> Any:
        """Ref of `Learner.improve`'s numbers; `scores`: an array, a ref of one, or None."""
        return self._call("improve", conversations, responses, specification, scores)

    def fit_prm(self, conversations: Any, specification: PRMFit) -> Any:
        """Ref of `Learner.fit_prm`'s numbers."""
        return self._call("fit_prm", conversations, specification)

    def implicit_rewards(self, conversations: Any, beta: float) -> Any:
        """Ref of `Learner.implicit_rewards`' array."""
        return self._call("implicit_rewards", conversations, beta)

    def score_turns(self, conversations: Any, beta: float) -> Any:
        """Ref of `Learner.score_turns`' table."""
        return self._call("score_turns", conversations, beta)

    def turn_rewards(self, conversations: Any, specification: TurnRewards, implicit: Any = None) -> tuple[Any, Any]:
        """Refs of `Learner.turn_rewards`' array and numbers."""
        return self._call_pair("turn_rewards", conversations, specification, implicit)

    def advantages(self, conversations: Any, rewards: Any, specification: Advantages) -> tuple[Any, Any]:
        """Refs of `Learner.advantages`' array and numbers."""
        return self._call_pair("advantages", conversations, rewards, specification)

    def turn_advantages(self, conversations: Any, terminal: Any, specification: TurnAdvantages) -> tuple[Any, Any]:
        """Refs of `Learner.turn_advantages`' array and numbers; `terminal`: a ref, or None."""
        return self._call_pair("turn_advantages", conversations, terminal, specification)

    def fit_pairs(self, pairs: Any, preferred: Any, model: PairModel, specification: PairFit) -> Any:
        """Ref of `Learner.fit_pairs`' numbers."""
        return self._call("fit_pairs", pairs, preferred, model, specification)

    def pair_quality(self, pairs: Any, preferred: Any, model: PairModel) -> Any:
        """Ref of `Learner.pair_quality`'s numbers."""
        return self._call("pair_quality", pairs, preferred, model)

    def preferred(self, pairs: Any, model: PairModel) -> Any:
        """Ref of `Learner.preferred`'s array."""
        return self._call("preferred", pairs, model)

    def rewards(self, conversations: Any) -> Any:
        """Ref of `Learner.rewards`' array."""
        return self._call("rewards", conversations)

    def adopt(self, model: PairModel, folder: str | Path) -> Any:
        """See `Learner.adopt`, for a folder that every rank sees; the ref is ready when all have read it."""
        return _all.remote(*[actor.call.remote("adopt", model, str(folder)) for actor in self._actors])

    def improve_conversations(self, conversations: Any, advantages: Any, specification: ConversationImprovement) -> Any:
        """Ref of `Learner.improve_conversations`' numbers."""
        return self._call("improve_conversations", conversations, advantages, specification)

    def supervise(self, conversations: Any, specification: Supervision) -> Any:
        """Ref of `Learner.supervise`'s numbers."""
        return self._call("supervise", conversations, specification)

    def anchor(self) -> Any:
        """See `Learner.anchor`; the ref is ready when it is done."""
        return self._call("anchor")

    def weights(self, version: int) -> Any:
        """Ref of the policy's `PackedWeights`, owned by the caller."""
        return self._call("weights", version)

    def packed(self, version: int) -> tuple[Any, Any]:
        """Refs of the policy's `PackedWeights` and of their size in bytes, by which it is known that they are there."""
        return self._call_pair("packed", version)

    def failed(self) -> bool:
        """Whether one of them failed while it started, or they have started and are not `sound`; for a group at rest."""
        ready, _ = ray.wait(self._started, num_returns=len(self._started), timeout=0)
        try:
            ray.get(ready)
        except ray.exceptions.RayError:
            return True
        return len(ready) == len(self._started) and not self.sound(ANSWER_SECONDS)

    def sound(self, seconds: float) -> bool:
        """Whether every process is alive and done with what it was asked, in time; false as soon as one of them is lost."""
        return bool(self._actors) and sound([actor.ready.remote() for actor in self._actors], seconds)

    def save(self, folder: str | Path) -> Any:
        """See `Learner.save`; the ref is ready when the files are written. The folder has to be rank 0's to write."""
        return self._call("save", str(folder))

    def load(self, folder: str | Path) -> Any:
        """See `Learner.load`; the ref is ready when every rank has read the folder, which all of them have to see."""
        return _all.remote(*[actor.call.remote("load", str(folder)) for actor in self._actors])

    def stop(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []


@small_task()
def _all(*results: Any) -> None:
    """Done when all of them are; fails when one of them did."""
