"""A run that loses a part every 20 seconds, beside the same run left alone.

1. The same settings and seed are run twice on a cluster of several nodes on this machine: undisturbed, and with kills. Each
   has an even number of turns of at most `TURN_MINUTES`, in the order ABBA…: a machine that is shared with others is not as
   fast in one quarter of an hour as in the next, and one that gets slower all the time is as slow for both. A turn is
   measured from the end of its first iteration to the end of its last.
2. The kinds take turns in an order drawn anew for each round. A kill comes `every` seconds after the last one, a quarter more
   or less; later where the run has not recovered by then.
3. Recovered is a run when what it lost has been replaced, nothing is missing (spares included), and a worker has taken a lease
   since.
4. Throughput is conversations of finished iterations per second. The time from a driver's death until its successor has
   recovered does not count, neither here nor in the minutes nor between two kills: nobody but this command would have
   started one.
5. Afterwards the journal is held against the leases (`audit`).
"""

import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.local import LocalCluster, Shape, local_cluster
from mtrl_ray.chaos.audit import Audit, audit
from mtrl_ray.chaos.driver import State
from mtrl_ray.chaos.subject import START_SECONDS, Subject
from mtrl_ray.config import Settings, validate
from mtrl_ray.errors import EngineError
from mtrl_ray.replay.journal import Journal
from mtrl_ray.run_folder import prepare
from mtrl_ray.run_lock import driven

KINDS = ("worker", "engine", "node", "learner", "buffer", "driver")
RECOVERY_SECONDS = 180.0
"""For a run to recover; past it the command says so and ends."""
TARGET_SECONDS = 20.0
"""For a part to be there that can be killed."""
TURN_MINUTES = 4.0
"""Longest part of a run that is measured before it is the other's turn."""
STEP_SECONDS = 0.1
"""Between two looks at a run."""
NODES = 3
SLACK = 0.25
"""Share by which the time between two kills varies."""


@dataclass
class Kill:
    """One kill: what was killed, when, and when the run had recovered (`time.time`)."""

    kind: str
    at: float
    recovered: float

    @property
    def seconds(self) -> float:
        """From the one to the other."""
        return self.recovered - self.at


@dataclass
class Stretch:
    """A measured part of a run, or several: seconds, conversations that the journal got in them, kills.

    `stop_seconds`: the longest that a stop signal took.
    """

    seconds: float = 0.0
    conversations: int = 0
    kills: list[Kill] = field(default_factory=list)
    stop_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Conversations per second, driver's restarts left out."""
        away = sum(kill.seconds for kill in self.kills if kill.kind == "driver")
        return self.conversations / max(self.seconds - away, 1e-9)

    def __add__(self, other: "Stretch") -> "Stretch":
        return Stretch(
            self.seconds + other.seconds,
            self.conversations + other.conversations,
            [*self.kills, *other.kills],
            max(self.stop_seconds, other.stop_seconds),
        )


def disturb(
    settings: Settings,
    undisturbed: float,
    minutes: float,
    every: float,
    seed: int,
    say: Callable[[str], None],
    kinds: Sequence[str] = KINDS,
) -> dict[str, Any]:
    """Both runs and what came out, as `mtrl chaos --json` has it. Raises EngineError where a run does not recover."""
    rng = random.Random(seed)
    schedule, turns = Schedule(every, kinds, rng), 2 * math.ceil(max(minutes, undisturbed) / TURN_MINUTES / 2)
    alone, disturbed = prepared(settings, "undisturbed"), prepared(settings, "disturbed")
    calm, stretch = Stretch(), Stretch()
    with local_cluster(Shape(nodes=NODES, most=NODES, cpus=_cpus(settings), idle_seconds=3600.0)) as cluster:
        for turn in range(2 * turns):
            if turn % 4 in (0, 3):
                calm += measure(cluster, alone, undisturbed / turns, rng, say, None)
                say(f"turn {turn + 1} of {2 * turns}: undisturbed {calm.rate:.1f} conversations/s until now")
            else:
                stretch += measure(cluster, disturbed, minutes / turns, rng, say, schedule)
                say(f"turn {turn + 1} of {2 * turns}: disturbed {stretch.rate:.1f} conversations/s until now")
    say(f"a stop signal ended the disturbed run within {stretch.stop_seconds:.0f} s")
    return result(calm, stretch, audit(disturbed))


def result(calm: Stretch, disturbed: Stretch, found: Audit) -> dict[str, Any]:
    """The figures, by name."""
    seconds = [kill.seconds for kill in disturbed.kills]
    by_kind = Counter(kill.kind for kill in disturbed.kills)
    return {
        "kills": {**{kind: by_kind[kind] for kind in KINDS}, "total": len(disturbed.kills)},
        "lost": found.lost,
        "repeated": found.repeated,
        "zero_filled": found.zero_filled,
        "throughput_ratio": disturbed.rate / calm.rate if calm.rate else None,
        "recovery_seconds": {
            "median": statistics.median(seconds) if seconds else None,
            "max": max(seconds, default=None),
        },
    }


class Schedule:
    """When the next kill comes and of what kind; `most`: how many there are (None: no bound).

    It is one for all turns: what is left of a pause at the end of one is waited for in the next.
    """

    def __init__(self, every: float, kinds: Sequence[str], rng: random.Random, most: int | None = None) -> None:
        self._every, self._kinds, self._rng, self._left = every, kinds, rng, most
        self._round: list[str] = []
        self._pause, self._looked = self._drawn(), 0.0

    @property
    def spent(self) -> bool:
        """Whether there are no more."""
        return self._left == 0

    def resume(self, now: float) -> None:
        """Time counts from now on; what has passed since it was looked at last does not."""
        self._looked = now

    def due(self, now: float) -> bool:
        """Whether it is time for the next."""
        self._pause -= now - self._looked
        self._looked = now
        return self._pause <= 0 and not self.spent

    def kind(self) -> str:
        """What is killed next; from now on the one after it is waited for."""
        self._pause = self._drawn()
        if self._left is not None:
            self._left -= 1
        if not self._round:
            self._round = self._rng.sample(self._kinds, len(self._kinds))
        return self._round.pop()

    def _drawn(self) -> float:
        return self._every * self._rng.uniform(1 - SLACK, 1 + SLACK)


def measure(
    cluster: LocalCluster,
    settings: Settings,
    minutes: float,
    rng: random.Random,
    say: Callable[[str], None],
    schedule: Schedule | None,
) -> Stretch:
    """Begin or continue a prepared run; measure it for `minutes`, or until the kills of `schedule` are spent; stop it.

    From the end of one iteration to the end of another, with kills to the last; the stop signal then meets an iteration at any
    moment. Raises EngineError where it does not start, ends by itself, or does not recover.
    """
    subject, journal = Subject(cluster, settings.run_folder, rng), Journal(settings.run_folder / "journal")
    subject.start()
    begun = _first_iteration(subject)
    stretch, before, known, finished = Stretch(), journal.position.rows, _done(subject), 0
    end = begun + 60 * minutes
    if schedule:
        schedule.resume(time.time())
    while True:
        time.sleep(STEP_SECONDS)
        subject.check()
        done, now = _done(subject), time.time()
        finished += done > known
        if schedule and schedule.spent:
            end = min(end, now)
        if done > known and now > end:
            break
        if now > end + START_SECONDS:
            raise EngineError(
                f"the run has not finished an iteration for {START_SECONDS:.0f} s; it is at {subject.now}"
            )
        known = done
        if schedule and schedule.due(now):
            if kill := _strike(subject, schedule.kind(), say):
                stretch.kills.append(kill)
                if kill.kind == "driver":
                    end += kill.seconds
                    schedule.resume(kill.recovered)
            known = _done(subject)  # an iteration that ended while the run recovered did not end now
    stretch.seconds, stretch.conversations = time.time() - begun, journal.position.rows - before
    time.sleep(rng.uniform(0, stretch.seconds / finished))
    stretch.stop_seconds = subject.stop()
    return stretch


def _first_iteration(subject: Subject) -> float:
    """When the first iteration ended. Raises EngineError where none does in time."""
    found: list[int] = []

    def ended(state: State) -> bool:
        found.append(state.iteration)
        return state.iteration > found[0]

    at = subject.wait(ended, START_SECONDS)
    if at is None:
        raise EngineError(f"the run did not finish an iteration within {START_SECONDS:.0f} s; it is at {subject.now}")
    return at


def _done(subject: Subject) -> int:
    return subject.now.iteration if subject.now else 0


def _strike(subject: Subject, kind: str, say: Callable[[str], None]) -> Kill | None:
    deadline = time.monotonic() + TARGET_SECONDS
    while not (killed := subject.kill(kind)):
        if time.monotonic() > deadline:
            say(f"there is no {kind} to be killed")
            return None
        time.sleep(0.1)
    at, iteration = time.time(), _done(subject) + 1
    if kind == "driver":
        subject.start()
    recovered = subject.wait(_Recovered(killed), RECOVERY_SECONDS, since=at)
    if recovered is None:
        raise EngineError(
            f"{RECOVERY_SECONDS:.0f} s after its {kind} was killed the run had not recovered; it is at {subject.now}"
        )
    say(f"{kind} killed in iteration {iteration}: whole again and at work after {recovered - at:.1f} s")
    return Kill(kind, at, recovered)


class _Recovered:
    """Whether a state, and those before it, show that a run which lost these processes has recovered."""

    def __init__(self, killed: set[int]) -> None:
        self._killed = killed
        self._leases: int | None = None  # when the damage was repaired

    def __call__(self, state: State) -> bool:
        if state.processes & self._killed or state.missing:
            self._leases = None
            return False
        if self._leases is None:
            self._leases = state.leases
        return state.leases > self._leases


def _cpus(settings: Settings) -> int:
    """Of each node: two of them hold the whole run, one does not."""
    from cluster.session import demand

    return max(1, math.ceil(demand(settings)[0] / 2))


def prepared(settings: Settings, name: str) -> Settings:
    """The settings of one of the two runs, and its folder."""
    tree = settings.model_dump(mode="json")
    tree["run"] |= {"name": f"{settings.run.name}-{name}", "iterations": 10**6, "minutes": None, "checkpoint_every": 1}
    made = validate(tree, name)
    with driven(made.run_folder):
        prepare(made, fresh=True, command=f"mtrl chaos ({name})")
    return made
