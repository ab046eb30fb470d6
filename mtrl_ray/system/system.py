"""The system as an algorithm sees it: conversations, responses, learning operations, publications.

Everything here lives in the driver and moves references; tables and weights stay in the object store. Identities and seeds
derive from (run seed, iteration, …). A resumed run requests the same conversations again and generates only those that the
journal does not have.

Calls on the learner and reads of the buffer return at once, and each actor runs its calls in order. `rollout` and `respond`
wait for the workers, because the next step needs their results. So Q is fitted while responses are sampled. Changes of the
buffer are waited for too: Ray may repeat them, and then their order would not be certain.

`take_metrics` gathers what the actors report and waits for all of it: it is the end of an iteration.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from mtrl_ray.errors import CheckpointError
from mtrl_ray.learner.group import LearnerGroup
from mtrl_ray.learner.operation import Numbers, Operation, ValueT
from mtrl_ray.monitoring.view import View
from mtrl_ray.processes.refs import Ref, T
from mtrl_ray.processes.waiting import fetch
from mtrl_ray.rollout.continuing import Chance, Start, by_start, continuations, require_chance
from mtrl_ray.rollout.fleet import Fleet
from mtrl_ray.rollout.lease import Lease, derive_seed, make_leases
from mtrl_ray.rollout.scaling import Scaling
from mtrl_ray.settings.tree import Settings, WorkerRange
from mtrl_ray.system.actors import Actors
from mtrl_ray.system.collection import Collector, evaluation_rollouts
from mtrl_ray.system.logged import Logged, States
from mtrl_ray.system.tables import conversation_numbers, joined, response_numbers

TOTALS = ("seconds", "conversations", "agent_turns", "tokens")
"""Numbers of the family `collect` that count branches too."""


class System:
    """Owns the actors of one run. `iteration` counts from 0 and is advanced by the trainer."""

    def __init__(self, settings: Settings, folder: Path, model_path: str, view: View) -> None:
        self.settings, self.folder, self.view = settings, folder, view
        self.iteration = 0
        self.version = -1
        self._actors = Actors(settings, folder, model_path, view.note)
        self.scaling: Scaling | None = None
        workers = settings.rollout.workers
        if isinstance(workers, WorkerRange) and workers.min < workers.max:
            self.scaling = Scaling(folder, lambda: self.fleet, workers)
        self._metrics: dict[str, float] = {}
        self._buffer_restarts: int | None = None  # when last asked
        self._promised: list[tuple[str | None, Ref[Numbers]]] = []  # with their prefix
        self._causes: list[tuple[str, Ref[str]]] = []  # work, and what failed in it as a sentence

    def start(self) -> list[dict[str, Any]]:
        """Wait for the workers, after a version of the weights was published; returns each worker's description."""
        self.view.part("rollout", "starting engines")
        workers = self.fleet.wait_ready()
        self.take_metrics()
        return workers

    def repair(self) -> list[str]:
        """Recreate the lost actors; returns their names. Nothing is in flight or promised afterwards (see `actors`)."""
        self._metrics, self._promised, self._causes = {}, [], []
        made = self._actors.repair()
        if self.scaling is not None:
            self.scaling.repair()
        return made

    def renew_learner(self) -> None:
        """A learner as it was before the first iteration."""
        self._actors.renew_learner()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the run's place: `iteration`, `version`, and `buffer`, the replay buffer's state."""
        return {
            "iteration": self.iteration,
            "version": self.version,
            "buffer": self.fetch(self.buffer.state.remote(), "the replay buffer's state"),
        }

    def save(self, folder: Path) -> None:
        """Write the learner's models, optimisers and random states into `folder`."""
        self.fetch(self.learner.save(folder), "the learner to write its state")

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        """Continue from what `save` wrote and `state` returned; the caller publishes the weights, as the version of `state`.

        Raises CheckpointError if either cannot be read.
        """
        self.fetch(self.learner.load(str(folder)), "the learner to read its state")
        try:
            iteration, version, buffer = int(state["iteration"]), int(state["version"]), state["buffer"]
            self._rebuild_buffer(buffer)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint {folder}: its state is not of this version: {error!r}") from None
        self.iteration, self.version = iteration, version - 1

    def reset(self) -> None:
        """Iteration 0 with an empty replay buffer and no published weights. The learner is left as it is."""
        self.iteration, self.version = 0, -1
        self._rebuild_buffer({"ids": [], "position": 0})

    def next_iteration(self) -> None:
        """Advance to the next iteration, with its contexts and seeds."""
        self.iteration += 1

    def _rebuild_buffer(self, state: dict[str, Any]) -> None:
        self.fetch(self.buffer.rebuild.remote(state), "the replay buffer to read the journal")

    def stop(self) -> None:
        """End the actors."""
        if self.scaling is not None:
            self.scaling.stop()
        self._actors.stop()

    @property
    def buffer(self) -> Any:
        """The replay buffer's handle."""
        return self._actors.buffer

    @property
    def fleet(self) -> Fleet:
        """The rollout workers."""
        return self._actors.fleet

    @property
    def learner(self) -> LearnerGroup:
        """The learner processes."""
        return self._actors.learner

    def fetch(self, reference: Ref[T], awaited: str) -> T:
        """The value of a ref, awaited for at most `run.wait_seconds`. Raises EngineError past it."""
        return fetch(reference, awaited, self.settings.run.wait_seconds)

    def rollout(self, contexts: int, samples: int, mixtures: Sequence[float] = (0.0,)) -> Logged:
        """Roll out `samples` conversations on each of the iteration's training contexts, into the replay buffer.

        mixtures: the reference's share τ in the first sample, the second, …, cyclically (`rollout.engine`); shares above 0
        need `rollout.reference`.
        """
        first = self.iteration * contexts
        return self._collect(
            "collect",
            make_leases(
                self.settings.run.seed, "train", self.iteration, range(first, first + contexts), samples, mixtures
            ),
        )

    def branch(self, branches: list[Lease]) -> Logged:
        """Roll out branches (`rollout.lease.branch`) of this iteration's conversations, into the replay buffer too.

        Their own metrics are the family `branch`; the counts of the family `collect` include them. Branches that only measure
        something are `evaluation_rollouts_of`.
        """
        held = self._collect("branch", branches)
        for name in TOTALS:
            self._metrics[f"collect/{name}"] += self._metrics[f"branch/{name}"]
        return held

    def _collect(self, family: str, leases: list[Lease]) -> Logged:
        collector = Collector(
            self._actors, self.settings, self.iteration, self.version, lambda doing: self.view.part("rollout", doing)
        )
        collected = collector.collect(leases)
        if causes := collector.causes():
            self.view.note(f"failures in iteration {self.iteration + 1}: {causes}")
        self._metrics |= {f"{family}/{name}": value for name, value in collected.numbers.items()}
        self._metrics |= {name: self._metrics.get(name, 0.0) + value for name, value in collected.faults.items()}
        by_id = {lease.id: lease for lease in leases}
        held = [by_id[name] for name in collected.ids]
        logged = Logged(self.buffer, self.settings.run.seed, self.iteration, held, collected.agent_turns)
        self.record(family, conversation_numbers.remote(logged.table))
        self.view.part("rollout", "idle")
        return logged

    def learn(
        self, operation: Operation[ValueT], *arguments: object, metrics: str | None = None
    ) -> tuple[Ref[ValueT], Ref[Numbers]]:
        """Have every learner process run an operation; refs of its value and its numbers. Returns at once.

        arguments: refs of tables and arrays, and plain values. metrics: prefix under which the numbers become the iteration's
        metrics; None: they do not. An algorithm may fetch them too, to react to a KL. If the operation raises, so does
        `take_metrics`.
        """
        if operation.doing:
            self.view.part("learner", operation.doing)
        value, numbers = self.learner.run(operation, *arguments)
        self._promised.append((metrics, numbers))
        return value, numbers

    def respond(self, states: States, samples: int, mixture: float = 0.0, stream: str = "") -> Ref[pa.Table]:
        """A table of `samples` responses in each state (`mtrl_ray.dialogue.responses`), ordered by state and sample.

        mixture: the reference's share τ in what is sampled; stream: name of another draw in the same states.
        """
        seed = derive_seed(states.seed, stream) if stream else states.seed
        started = time.perf_counter()
        self.view.part("rollout", f"{states.count} x {samples} responses under version {self.version}")
        results = list(self.fleet.respond(states.table, states.count, samples, seed, self.version, mixture))
        tokens = sum(result.report.agent_tokens for result in results)
        seconds = time.perf_counter() - started
        self._metrics |= {
            "respond/seconds": seconds,
            "respond/tokens": tokens,
            "respond/tokens_per_second": tokens / seconds,
        }
        self.view.part("rollout", "idle")
        table: Ref[pa.Table] = joined.remote(*[result.table[0] for result in results])
        self.record("respond", response_numbers.remote(table))
        return table

    def continued(
        self, starts: Sequence[Start], repeats: int = 1, chance: Chance = "independent", stream: str = ""
    ) -> pa.Table:
        """Answers in logged states, given or sampled, each continued `repeats` times to the end by the newest policy.

        Rows of `conversation.SCHEMA` with a column `start`, the index into `starts`, ordered by it and by repeat; what
        failed is missing. They are no training data: neither the replay buffer nor the journal gets them (`branch` gives
        them conversations). See `rollout.continuing`. Raises ConfigurationError if the users cannot draw `chance`, DataError
        for a start that cannot be continued, and like `evaluation_rollouts_of`.
        """
        require_chance(self.settings, chance)
        leases = list(continuations(self.settings.run.seed, starts, repeats, chance, stream))
        return by_start(self.evaluation_rollouts_of(leases, "continuations"), leases, repeats)

    def adopt(self, model: str, folder: str) -> None:
        """Take a value model from a folder, if the learner has none of this name yet."""
        self.fetch(self.learner.adopt(model, folder), f"the learner to read the {model} model")

    def publish(self) -> None:
        """Publish the policy's weights as the newest version, after the learner's earlier calls."""
        self.version += 1
        packed, size = self.learner.packed(self.version)
        self.fetch(size, "the learner to hand out the policy's weights")
        fetch(self._actors.store.publish.remote(self.version, [packed]), "the weight store to take a version")
        self.fetch(self.buffer.advance.remote(self.version), "the replay buffer to take a version's number")
        self.view.part("weights", f"version {self.version}")

    def record(self, prefix: str, numbers: Ref[Numbers]) -> None:
        """Make these numbers metrics of the iteration; `take_metrics` waits for them."""
        self._promised.append((prefix, numbers))

    def record_failures(self, work: str, causes: Ref[str]) -> None:
        """Have `take_metrics` note what failed in this work; `causes`: in a sentence, empty if nothing failed."""
        self._causes.append((work, causes))

    def take_metrics(self) -> dict[str, float]:
        """Wait for the actors' pending work; returns the numbers since the last call."""
        metrics, promised, failed = self._metrics, self._promised, self._causes
        self._metrics, self._promised, self._causes = {}, [], []
        for prefix, reference in promised:
            numbers = self.fetch(reference, f"the numbers of {prefix}" if prefix else "the learner")
            metrics |= _numbers(prefix, numbers) if prefix else {}
        for work, sentence in failed:
            if causes := self.fetch(sentence, f"what failed in {work}"):
                self.view.note(f"failures in iteration {self.iteration + 1}, {work}: {causes}")
        self._actors.replace_lost_spare()
        held = self.fetch(self.buffer.statistics.remote(), "the replay buffer's statistics")
        if self._buffer_restarts is not None and held["restarts"] > self._buffer_restarts:
            self.view.note("the replay buffer was lost and started again, as it was")
        self._buffer_restarts = held["restarts"]
        metrics |= _numbers("replay", held)
        metrics |= {
            "faults/dropped": float(self.fleet.statistics.dropped),
            "faults/worker_deaths": float(self.fleet.statistics.deaths),
            "faults/overdue": float(self.fleet.statistics.overdue),
        }
        metrics["weights/version"] = float(self.version)
        self.view.part("learner", "idle")
        return metrics

    def evaluation_rollouts(self, split: str, indices: Iterable[int], samples: int = 1, tag: int = 0) -> pa.Table:
        """Conversations of the newest policy that are not training data, ordered by id.

        `tag` takes the iteration's place in their identity and seed.
        """
        return self.evaluation_rollouts_of(make_leases(self.settings.run.seed, split, tag, indices, samples))

    def evaluation_rollouts_of(self, leases: list[Lease], what: str = "evaluation rollouts") -> pa.Table:
        """`evaluation_rollouts` of these leases. Raises EngineError or DataError if too many of them fail (`failures`)."""
        self.view.part("rollout", f"{len(leases)} {what}")
        table, causes = evaluation_rollouts(self.fleet, leases, self.version, self.settings.rollout)
        if causes:
            self.view.note(f"failures in {what}: {causes}")
        self.view.part("rollout", "idle")
        return table


def _numbers(prefix: str, values: dict[str, Any]) -> dict[str, float]:
    """The numbers among `values`, their names prefixed."""
    return {f"{prefix}/{key}": float(value) for key, value in values.items() if isinstance(value, int | float)}
