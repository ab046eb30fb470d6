"""A run that loses a part every 20 seconds, compared with the same undisturbed run.

1. The same settings and seed are run twice on a cluster of several nodes on this machine, with kills and undisturbed, in turns
   of at most `TURN_MINUTES`: a machine that is shared with others is not as fast in one quarter of an hour as in the next. A
   turn is measured from the end of its first iteration to the end of its last.
2. The kinds take turns in an order drawn anew for each round. A kill comes `every` seconds after the last one, a quarter more
   or less; later if the run has not recovered by then.
3. A run has recovered when its lost parts have been replaced, nothing is missing (spares included), and a worker has taken a
   lease since.
4. The comparison is the time that each run takes for the same iterations: training makes conversations longer or shorter, by
   the same tokens in both runs. The time from a driver's death until its successor has recovered
   does not count, neither here nor in the minutes nor between two kills: nobody but this command would have started one.
5. Afterwards the journal is compared with the leases (`audit`).
"""

import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtrl_cluster.local import LocalCluster, Shape, local_cluster
from mtrl_ray.chaos.audit import Audit, audit
from mtrl_ray.chaos.driver import State
from mtrl_ray.chaos.subject import START_SECONDS, Subject
from mtrl_ray.errors import EngineError
from mtrl_ray.run.folder import prepare
from mtrl_ray.run.lock import run_lock
from mtrl_ray.run.recipes import validate
from mtrl_ray.settings.tree import Settings

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
    """A measured part of a run: when iterations ended (seconds since the first, those without a driver left out), and kills.

    `stop_seconds`: how long the stop signal took.
    """

    ends: dict[int, float] = field(default_factory=dict)
    kills: list[Kill] = field(default_factory=list)
    stop_seconds: float = 0.0


@dataclass(frozen=True)
class Pace:
    """How many iterations both runs did, and the seconds that each took for them."""

    iterations: int = 0
    calm: float = 0.0
    disturbed: float = 0.0

    def __add__(self, other: "Pace") -> "Pace":
        return Pace(self.iterations + other.iterations, self.calm + other.calm, self.disturbed + other.disturbed)

    def __str__(self) -> str:
        calm, disturbed = (seconds / max(self.iterations, 1) for seconds in (self.calm, self.disturbed))
        return f"{self.iterations} iterations, disturbed {disturbed:.2f} s each, undisturbed {calm:.2f} s"

    @classmethod
    def of(cls, calm: Stretch, disturbed: Stretch) -> "Pace":
        """From the first to the last iteration whose end both stretches have."""
        both = sorted(calm.ends.keys() & disturbed.ends.keys())
        if not both:
            return cls()
        first, last = both[0], both[-1]
        return cls(last - first, *(stretch.ends[last] - stretch.ends[first] for stretch in (calm, disturbed)))


def disturb(
    settings: Settings,
    minutes: float,
    every: float,
    seed: int,
    say: Callable[[str], None],
    kinds: Sequence[str] = KINDS,
) -> dict[str, Any]:
    """Run both and return the results for `mtrl chaos --json`. Raises EngineError if a run does not recover."""
    rng = random.Random(seed)
    schedule, turns = Schedule(every, kinds, rng), math.ceil(minutes / TURN_MINUTES)
    disturbed, alone = prepared(settings, "disturbed"), prepared(settings, "undisturbed")
    pace, stretches = Pace(), list[Stretch]()
    with local_cluster(Shape(nodes=NODES, most=NODES, cpus=_cpus(settings), idle_seconds=3600.0)) as cluster:
        for turn in range(turns):
            stretch = measure(cluster, disturbed, lambda _, past: past >= 60 * minutes / turns, rng, say, schedule)
            calm = measure(cluster, alone, _reaching(max(stretch.ends)), rng, say)
            stretches, pace = [*stretches, stretch], pace + Pace.of(calm, stretch)
            say(f"turn {turn + 1} of {turns}: {pace} until now")
    stopped = max(stretch.stop_seconds for stretch in stretches)
    say(f"a stop signal ended the disturbed run within {stopped:.0f} s")
    return result(pace, [kill for stretch in stretches for kill in stretch.kills], audit(disturbed))


def _reaching(last: int) -> Callable[[int, float], bool]:
    return lambda done, _: done >= last


def result(pace: Pace, kills: Sequence[Kill], found: Audit) -> dict[str, Any]:
    """The figures, by name."""
    seconds = [kill.seconds for kill in kills]
    by_kind = Counter(kill.kind for kill in kills)
    return {
        "kills": {**{kind: by_kind[kind] for kind in KINDS}, "total": len(kills)},
        "leases": found.leases,
        "lost": found.lost,
        "repeated": found.repeated,
        "zero_filled": found.zero_filled,
        "iterations": pace.iterations,
        "throughput_ratio": pace.calm / pace.disturbed if pace.disturbed else None,
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
        """Restart the clock; time since the last check does not count."""
        self._looked = now

    def due(self, now: float) -> bool:
        """Whether it is time for the next."""
        self._pause -= now - self._looked
        self._looked = now
        return self._pause <= 0 and not self.spent

    def kind(self) -> str:
        """Return the kind to kill next, and move on to the one after it."""
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
    enough: Callable[[int, float], bool],
    rng: random.Random,
    say: Callable[[str], None],
    schedule: Schedule | None = None,
) -> Stretch:
    """Begin or continue a prepared run; measure it until it is `enough`, or the kills of `schedule` are spent; stop it.

    `enough` is called at the end of each iteration, with its number and the seconds measured. The stop signal meets the next
    at any moment. Raises EngineError if the run does not start, ends by itself, or does not recover.
    """
    subject = Subject(cluster, settings.run_folder, rng)
    subject.start()
    known, begun = _first_iteration(subject)
    stretch, away, progressed = Stretch({known: 0.0}), 0.0, begun
    if schedule:
        schedule.resume(time.time())
    while True:
        time.sleep(STEP_SECONDS)
        subject.check()
        done, now = _done(subject), time.time()
        if done > known:
            stretch.ends[done], progressed = now - begun - away, now
            if enough(done, stretch.ends[done]) or (schedule and schedule.spent):
                break
        if now - progressed > START_SECONDS:
            raise EngineError(
                f"the run has not finished an iteration for {START_SECONDS:.0f} s; it is at {subject.now}"
            )
        known = done
        if schedule and schedule.due(now):
            if kill := _strike(subject, schedule.kind(), say):
                stretch.kills.append(kill)
                if kill.kind == "driver":
                    away += kill.seconds
                    schedule.resume(kill.recovered)
            # An iteration that ended while the run recovered did not end now.
            known, progressed = _done(subject), time.time()
    time.sleep(rng.uniform(0, stretch.ends[done] / (len(stretch.ends) - 1)))
    stretch.stop_seconds = subject.stop()
    return stretch


def _first_iteration(subject: Subject) -> tuple[int, float]:
    """The first that ends, and when. Raises EngineError if none does in time."""
    seen: list[int] = []

    def ended(state: State) -> bool:
        seen.append(state.iteration)
        return state.iteration > seen[0]

    at = subject.wait(ended, START_SECONDS)
    if at is None:
        raise EngineError(f"the run did not finish an iteration within {START_SECONDS:.0f} s; it is at {subject.now}")
    return seen[-1], at


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
    from mtrl_ray.processes.session import demand

    return max(1, math.ceil(demand(settings)[0] / 2))


def prepared(settings: Settings, name: str) -> Settings:
    """The settings of one of the two runs, and its folder."""
    tree = settings.model_dump(mode="json")
    tree["run"] |= {"name": f"{settings.run.name}-{name}", "iterations": 10**6, "minutes": None, "checkpoint_every": 1}
    made = validate(tree, name)
    with run_lock(made.run_folder):
        prepare(made, fresh=True, command=f"mtrl chaos ({name})")
    return made
