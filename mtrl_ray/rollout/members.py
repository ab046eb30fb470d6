"""Who is in the fleet: workers that join, fall ill, come back and leave while work goes on.

1. `want` says how many there should be. A missing one is started at once; where the cluster has no room for it, its actor
   is pending, which is what makes Ray's autoscaler add a node.
2. A worker has joined when it answers: its engine runs under the newest weights. Until then it gets no work. As many as there
   should be get some, those that joined first; `spares` more are there to take the place of one that fails.
3. One that fails is started again by Ray, under the same number, and asked until it answers. A call that never returns tells
   of one that was lost while it held nothing; where Ray was quicker, its next report says so. One that Ray gives up is
   replaced under a new number, after a pause that doubles up to a minute while none joins. One that has a place on a node
   and has not answered for `START_SECONDS` is killed, and started again by Ray.
4. Where there are too many, those that have not joined go first, then those on the nodes with fewest of them, so that
   nodes become empty and can be given back; the driver's own node comes last. One that leaves gets no more work, finishes
   what it holds, though one of its calls failed, and is then ended. It is called back as what it was (`stays`) where it is
   wanted again before that.
5. Nothing here waits. The dispatch and the thread of `rollout.scaling` both call it.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import ray
from ray._private import state as ray_state
from ray.exceptions import ActorDiedError, RayError

logger = logging.getLogger(__name__)

START_SECONDS = 600.0
"""How long a worker may take until its engine runs."""
LOOK_SECONDS = 5.0
"""Between two looks at whether a worker that does not answer has a place on a node."""
PROBE_SECONDS = 0.2
"""Between two questions to a worker that is being started again."""
LONGEST_PAUSE = 60.0
"""Before a worker that Ray gave up is replaced, at most."""
LOST_IDLE = "was lost while it had nothing to do, and is started again"


class Phase(StrEnum):
    """Where a worker is between its start and its end."""

    STARTING = "starting"
    """It has not answered yet: no node has room for it, or its engine is on its way."""
    READY = "ready"
    """It takes work, or is spare."""
    ILL = "ill"
    """It failed, and has not answered since."""
    LEAVING = "leaving"
    """It takes no more work, and ends when it holds none."""


@dataclass
class Member:
    """A worker: its number in reports, its actor, its phase, its node.

    `up`: when its engine was ready, by its node's clock (`time.time`). `given`: pieces of work it got since. `answer`: what
    it says to `ready`, awaited; where that failed it is asked again from `ask_at` on. `killed`: `up` of a process that was
    killed, whose answers do not count. `pid`: of its process; `watch`: fails when that ends. `stays`: the phase of one that
    leaves, were it to stay. `silent`: since when it could have answered; looked at again from `look_at` on.
    """

    number: int
    actor: Any
    phase: Phase = Phase.STARTING
    given: int = 0
    node: str | None = None
    up: float = 0.0
    answer: Any = None
    ask_at: float = 0.0
    killed: float = 0.0
    watch: Any = None
    pid: int = 0
    stays: Phase = Phase.READY
    silent: float = 0.0
    look_at: float = 0.0

    @property
    def ill(self) -> bool:
        """Whether it failed and has not answered since, leaving or not."""
        return (self.stays if self.phase is Phase.LEAVING else self.phase) is Phase.ILL


class Members:
    """The fleet's workers. Safe for threads."""

    def __init__(
        self,
        start: Callable[[int], Any],
        home: str | None = None,
        spares: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`start(number)` gives a worker's actor; `home`: the driver's node; `spares`: beyond those wanted."""
        self._start, self._home, self._clock = start, home, clock
        self.spares = spares
        self._lock = threading.RLock()
        self._members: dict[int, Member] = {}
        self._next = 0
        self._pause, self._start_from = 0.0, 0.0
        self._lost: list[str] = []
        self._fallen: list[str] = []
        self._stopped = False
        self._load = Counter[int]()
        self.wanted = 0

    def want(self, count: int) -> None:
        """There should be `count` workers from now on."""
        with self._lock:
            self.wanted = count
            self._adjust()

    def attend(self) -> None:
        """Hear who has answered, end those that have left, start those that are missing."""
        with self._lock:
            for member in list(self._members.values()):
                self._hear(member)
                if member.phase is Phase.LEAVING and self._load[member.number] == 0:
                    self._end(member)
            self._adjust()

    def unburden(self) -> Counter[int]:
        """Nobody holds anything that somebody waits for. Gives the pieces of work by worker, which `take` counts up from
        now on, and the caller down.
        """
        with self._lock:
            self._load = Counter()
            return self._load

    def take(self, most: int) -> Member | None:
        """The least loaded worker that holds fewer than `most` pieces of work, counted as holding one more; or None."""
        with self._lock:
            able = [one for one in self.active() if self._load[one.number] < most]
            if not able:
                return None
            member = min(able, key=lambda one: self._load[one.number])
            self._load[member.number] += 1
            member.given += 1
            return member

    def failed(self, number: int) -> bool:
        """A worker failed: it gets no work until it answers again. False where that was known."""
        with self._lock:
            member = self._members.get(number)
            if member is None or member.ill:
                return False
            member.silent = self._clock()
            self._ask(member)
            if member.phase is Phase.LEAVING:
                member.stays = Phase.ILL
            else:
                member.phase = Phase.ILL
            return True

    def renewed(self, number: int, up: float, node: str, pid: int) -> bool:
        """A worker reported from an engine that is ready since `up`. True where that is a later one than was known: its process
        was lost between two calls, and Ray had started it again when it was called.
        """
        with self._lock:
            member = self._members.get(number)
            if member is None or member.ill or up <= member.up:
                return False
            member.up, member.node, member.pid, member.given = up, node, pid, 1
            member.watch = member.actor.watch.remote()
            return True

    def restart(self, number: int) -> None:
        """Kill a worker that keeps its work too long; Ray starts it again."""
        with self._lock:
            member = self._members.get(number)
            if member is not None and not member.ill:
                self._kill(member)
                self.failed(number)

    def awaited(self) -> list[Any]:
        """References that become ready when a worker has something to say."""
        with self._lock:
            heard = (Phase.STARTING, Phase.ILL)
            return [one.answer for one in self._members.values() if one.answer is not None and one.phase in heard]

    def ready(self) -> list[Member]:
        """Those that can take work, by number."""
        with self._lock:
            return [one for one in self._members.values() if one.phase is Phase.READY]

    def active(self) -> list[Member]:
        """Of these the ones that get work, as many as are wanted, by number; the others, the last that joined, are spare."""
        with self._lock:
            joined = sorted(self.ready(), key=lambda one: (one.up, one.number))
            return sorted(joined[: self.wanted], key=lambda one: one.number)

    def started(self) -> list[Member]:
        """Those that have joined, whatever became of them since, by number."""
        with self._lock:
            return [one for one in self._members.values() if one.phase is not Phase.STARTING]

    def count(self) -> Counter[Phase]:
        """How many are in which phase."""
        with self._lock:
            return Counter(one.phase for one in self._members.values())

    def lost(self) -> list[str]:
        """One sentence for each worker that Ray gave up, or that never answered, since this was asked last."""
        with self._lock:
            lost, self._lost = self._lost, []
            return lost

    def fallen(self) -> list[str]:
        """One sentence for each worker that was lost while it held nothing, since this was asked last."""
        with self._lock:
            fallen, self._fallen = self._fallen, []
            return fallen

    def stop(self) -> None:
        """End them all."""
        with self._lock:
            self._stopped = True
            for member in list(self._members.values()):
                self._end(member)

    def _adjust(self) -> None:
        most = self.wanted + self.spares if self.wanted else 0
        staying = [one for one in self._members.values() if one.phase is not Phase.LEAVING]
        for member in [one for one in self._members.values() if one.phase is Phase.LEAVING]:
            if len(staying) < most:
                member.phase = member.stays
                staying.append(member)
        while len(staying) < most and self._clock() >= self._start_from and not self._stopped:
            staying.append(self._begin())
        while len(staying) > most:
            member = first_to_leave(staying, self._home)
            staying.remove(member)
            if self._load[member.number]:
                member.phase, member.stays = Phase.LEAVING, member.phase
            else:
                self._end(member)

    def _begin(self) -> Member:
        member = Member(self._next, self._start(self._next), silent=self._clock())
        self._members[member.number] = member
        self._next += 1
        self._ask(member)
        return member

    def _end(self, member: Member) -> None:
        del self._members[member.number]
        ray.kill(member.actor)

    def _kill(self, member: Member) -> None:
        """End its process; Ray starts it again."""
        ray.kill(member.actor, no_restart=False)
        member.killed = member.up

    def _ask(self, member: Member) -> None:
        member.answer = member.actor.ready.remote()

    def _hear(self, member: Member) -> None:
        if member.phase is Phase.READY and not self._load[member.number]:
            self._look_after(member)
        if member.phase not in (Phase.STARTING, Phase.ILL):
            return
        if member.answer is None:
            if self._clock() >= member.ask_at:
                self._ask(member)
            return
        if not ray.wait([member.answer], timeout=0)[0]:
            self._end_silence(member)
            return
        try:
            said = ray.get(member.answer)
        except ActorDiedError as error:
            self._give_up(member, error)
            return
        except RayError:
            said = None
        if said is None or said["up"] <= member.killed:
            member.answer, member.ask_at = None, self._clock() + PROBE_SECONDS
            self._end_silence(member)
        else:
            member.phase, member.answer, member.given = Phase.READY, None, 0
            if said["up"] != member.up:  # another process; each watch takes a thread of it
                member.watch = member.actor.watch.remote()
            member.node, member.up, member.pid = said["node"], said["up"], said["pid"]
            self._pause = 0.0

    def _look_after(self, member: Member) -> None:
        """One that holds nothing. One that is at work is heard of when its call fails."""
        if ray.wait([member.watch], timeout=0)[0] and self.failed(member.number):
            self._fallen.append(f"worker {member.number} {LOST_IDLE}")

    def _end_silence(self, member: Member) -> None:
        now = self._clock()
        if now < member.look_at:
            return
        member.look_at = now + LOOK_SECONDS
        if not _placed(member.actor):
            member.silent = now
        elif now - member.silent >= START_SECONDS:
            member.silent = now
            self._kill(member)
            self._lost.append(f"worker {member.number} did not answer for {START_SECONDS:.0f} s and was killed")
            logger.warning("rollout %s", self._lost[-1])

    def _give_up(self, member: Member, error: ActorDiedError) -> None:
        del self._members[member.number]
        self._pause = min(max(2 * self._pause, 1.0), LONGEST_PAUSE)
        self._start_from = self._clock() + self._pause
        self._lost.append(f"worker {member.number} cannot be started: {sentence(error)}")
        logger.warning("rollout %s; the next one is started in %.0f s", self._lost[-1], self._pause)


def _placed(actor: Any) -> bool:
    """Whether a node has room for this actor. Ray's public interface asks the dashboard, which may be off."""
    address = ray_state.actors(actor_id=actor._actor_id.hex()).get("Address", {})
    return bool(address.get("IPAddress"))  # `NodeID` is there before: the node that looks for room


def first_to_leave(members: list[Member], home: str | None) -> Member:
    """Of these the one to let go first (rule 4); the youngest where all else is equal."""
    crowd = Counter(one.node for one in members)
    return min(members, key=lambda one: (one.phase is Phase.READY, one.node == home, crowd[one.node], -one.number))


def sentence(error: BaseException) -> str:
    """The last line of an error: the sentence of what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
