"""Rollouts of leases: an iteration's go into the replay buffer, evaluation rollouts into a table.

- What the journal has of the iteration is recalled first, and only the rest is rolled out. A table that is lost on its way
  from a worker to the buffer is rolled out again, up to `rollout.retries` times.
- A conversation counts once, by identity: the buffer drops doubles and knows which conversations there are.
- A conversation that failed in each of its tries, or that the buffer refused, is left out and counted by cause. It never
  enters a batch as a zero. If more than `rollout.data_errors` of the conversations are left out, nothing is learned from the
  others (`failures`): wrong data stops the run, and users that do not answer are a failure of its machinery.
- Metrics describe the conversations themselves, so they are the same whether these were rolled out now or recalled. What the
  machinery did is counted in the family `faults`.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from mtrl_ray.dialogue.conversation import SCHEMA
from mtrl_ray.errors import DataError, EngineError
from mtrl_ray.processes.failures import Failure, causes, stop_at_too_many
from mtrl_ray.processes.waiting import fetch
from mtrl_ray.rollout.fleet import Fleet
from mtrl_ray.rollout.lease import Lease
from mtrl_ray.rollout.worker import Report
from mtrl_ray.settings.tree import RolloutSettings, Settings
from mtrl_ray.statistics.estimates import mean_interval
from mtrl_ray.system.actors import Actors


@dataclass(frozen=True)
class Collected:
    """Ids in the buffer's order, the number of agent turns of each, numbers about them, and metrics of what failed."""

    ids: list[str]
    agent_turns: list[int]
    numbers: dict[str, float]
    faults: dict[str, float]


@dataclass
class _Work:
    reports: list[Report] = field(default_factory=list)
    failures: dict[str, Failure] = field(default_factory=dict)  # the last one of each conversation
    refused: list[Failure] = field(default_factory=list)

    def add(self, report: Report) -> None:
        self.reports.append(report)
        for failure in report.failures:
            self.failures[failure.id] = failure

    def refuse(self, sentences: list[str], leases: list[Lease]) -> None:
        """Count conversations that the replay buffer refused, by lease."""
        for said in sentences:
            name = next((lease.id for lease in leases if repr(lease.id) in said), "a table of conversations")
            failure = Failure(name, DataError.__name__, f"refused by the replay buffer: {said}")
            self.refused.append(failure)
            self.failures[name] = failure

    def check_left_out(self, leases: list[Lease], held: set[str], rollout: RolloutSettings) -> int:
        """Count the leases without a conversation. Raises DataError or EngineError if too many failed or were refused."""
        missing = [lease.id for lease in leases if lease.id not in held]
        refused = {name: replace(failure, id=name) for failure in self.refused[:1] for name in missing}
        known = refused | self.failures
        left_out = [known[name] for name in missing if name in known]
        stop_at_too_many(left_out, len(leases), rollout.data_errors, "conversations", rollout.retries + 1)
        return len(missing)

    def causes(self) -> str:
        """The most frequent causes of failures, as the end of a sentence; empty if nothing failed."""
        return causes(self.all_failures())

    def all_failures(self) -> list[Failure]:
        """The failures of all tries."""
        return [*(failure for report in self.reports for failure in report.failures), *self.refused]


def evaluation_rollouts(
    fleet: Fleet, leases: list[Lease], version: int, rollout: RolloutSettings
) -> tuple[pa.Table, str]:
    """Conversations that are no training data, ordered by id, and the causes of failures as the end of a sentence.

    Raises EngineError or DataError if too many of them are left out, and what the fleet raises.
    """
    work, tables = _Work(), []
    for result in fleet.rollout(leases, version):
        work.add(result.report)
        tables.append(result.table[0])
    read = fetch(tables, "conversations on their way from the workers")
    table = pa.concat_tables(read).sort_by("id") if read else SCHEMA.empty_table()
    work.check_left_out(leases, set(table["id"].to_pylist()), rollout)
    return table, work.causes()


class Collector:
    """Rolls out the leases of one iteration under weights of at least `version`."""

    def __init__(
        self, actors: Actors, settings: Settings, iteration: int, version: int, say: Callable[[str], None]
    ) -> None:
        """`say` is called with what is being done."""
        self._actors, self._iteration, self._version, self._say = actors, iteration, version, say
        self._rollout, self._seconds = settings.rollout, settings.run.wait_seconds
        self._work = _Work()

    def collect(self, leases: list[Lease]) -> Collected:
        """Roll out what is missing. Raises EngineError or DataError if too many conversations are left out."""
        started = time.perf_counter()
        known = self._recalled() & {lease.id for lease in leases}
        self._hold(leases, known)
        outcomes = self._outcomes({lease.id for lease in leases})
        missing = self._work.check_left_out(leases, set(outcomes["counted"]), self._rollout)
        numbers = self._numbers(outcomes, time.perf_counter() - started) | {"failures": float(missing)}
        faults = self._faults() | {"faults/reused": float(len(known))}
        return Collected(outcomes["id"], outcomes["agent_turns"], numbers, faults)

    def causes(self) -> str:
        """The most frequent causes of failures, as the end of a sentence; empty if nothing failed."""
        return self._work.causes()

    def _hold(self, leases: list[Lease], known: set[str]) -> None:
        for _ in range(self._rollout.retries + 1):
            missing = sum(lease.id not in known for lease in leases)
            self._say(f"rolling out {missing} conversations under version {self._version}")
            appended, done = [], 0
            for result in self._actors.fleet.rollout(leases, self._version, known):
                self._work.add(result.report)
                appended.append(self._actors.buffer.append.remote(result.table))
                done += result.report.finished
                self._say(f"{done} conversations, {missing} were missing")
            answers = self._ask(appended)
            self._work.refuse([said for answer in answers for said in answer.refused], leases)
            lost = [cause for answer in answers for cause in answer.lost.values()]
            if not lost:
                return
            known = self._recalled()
        raise EngineError(
            f"conversations were lost between worker and replay buffer {self._rollout.retries + 1} times in a "
            f"row; the last cause: {lost[0]}"
        )

    def _recalled(self) -> set[str]:
        """Ids that the buffer counts in this iteration."""
        return set(self._ask(self._actors.buffer.recall.remote(self._iteration)))

    def _outcomes(self, wanted: set[str]) -> dict[str, list[Any]]:
        """`ReplayBuffer.outcomes` of these conversations."""
        found = self._ask(self._actors.buffer.outcomes.remote(self._iteration))
        rows = [row for row, name in enumerate(found["id"]) if name in wanted]
        counted = found.pop("counted")
        return {"counted": counted, **{key: [values[row] for row in rows] for key, values in found.items()}}

    def _ask(self, references: Any) -> Any:
        return fetch(references, "the replay buffer to take and count conversations", self._seconds)

    def _numbers(self, outcomes: dict[str, list[Any]], seconds: float) -> dict[str, float]:
        tokens = sum(report.agent_tokens for report in self._work.reports)
        score = mean_interval(outcomes["score"], clusters=outcomes["source"])
        return {
            "seconds": seconds,
            "conversations": float(len(outcomes["id"])),
            "agent_turns": float(sum(outcomes["agent_turns"])),
            "tokens": float(sum(outcomes["agent_tokens"])),
            "tokens_per_second": tokens / seconds,
            "staleness": float(max((self._version - one.version for one in self._work.reports), default=0)),
            **{f"score_{key}": value for key, value in score.as_dict().items()},
        }

    def _faults(self) -> dict[str, float]:
        kinds = Counter(failure.kind for failure in self._work.all_failures())
        return {
            "faults/errors": float(sum(kinds.values())),
            **{f"faults/{kind}": float(count) for kind, count in sorted(kinds.items())},
        }
