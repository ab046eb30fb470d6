"""Many conversations around one engine, without lock step.

A job is a list of conversations or of single responses that were asked for together; any number of jobs share the engine. One
thread steps the engine. When an agent turn ends, its user is asked at once. The loop waits for a scripted user, but not for
one that waits for a network: as many of these as there are conversations may be asked at a time. New weights are loaded
between two steps.

A conversation that fails (its user, its environment, a user's turn that takes longer than `rollout.user_seconds`) is recorded
with its cause and leaves the others alone. An engine that fails ends the loop: every open job fails with it, and keeps what
was finished. `progress` changes as long as the loop makes progress (see `rollout.heartbeats`).
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from mtrl_envs.base import Environment, Reply
from mtrl_envs.driver import Driver
from mtrl_ray.dialogue.conversation import Conversation
from mtrl_ray.dialogue.tokens import ChatFormat
from mtrl_ray.errors import EngineError, MtrlError
from mtrl_ray.processes.deadlines import Calls
from mtrl_ray.processes.failures import Failure
from mtrl_ray.processes.refs import T
from mtrl_ray.rollout.dialogue import Dialogue, Limits
from mtrl_ray.rollout.engine import Engine, Generation, SampleRequest
from mtrl_ray.rollout.lease import Lease

logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.05
"""Longest sleep of the loop while it waits for a job or a slow user."""

LOAD_SECONDS = 600.0
"""Longest wait for something that is done between two steps."""


@dataclass
class Job:
    """Work submitted together, and its results. Wait for `done`, then read."""

    expected: int
    conversations: list[Conversation] = field(default_factory=list)
    generations: dict[str, Generation] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def _check(self) -> None:
        if len(self.conversations) + len(self.generations) + len(self.failures) >= self.expected:
            self.done.set()


@dataclass
class LoopStatistics:
    """Since the loop began: steps, sampled tokens, seconds spent in the engine and in users, most in flight."""

    steps: int = 0
    tokens: int = 0
    engine_seconds: float = 0.0
    user_seconds: float = 0.0
    most_in_flight: int = 0


Work = tuple[Job, Lease] | tuple[Job, SampleRequest]


class DialogueLoop:
    """The loop's state. `submit` and `load` may be called from any thread; `run` belongs to one."""

    def __init__(
        self,
        engine: Engine,
        chat: ChatFormat,
        environment: Environment,
        limits: Limits,
        concurrency: int,
        user_seconds: float,
    ) -> None:
        self._engine, self._chat, self._environment, self._limits = engine, chat, environment, limits
        self._concurrency = concurrency
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: deque[Work] = deque()
        self._speaking: dict[str, tuple[Job, Dialogue | None]] = {}  # request id: agent's turn under way
        self._listening: dict[Future[Any], tuple[Job, Dialogue]] = {}  # slow users' turns under way
        self._users = Calls(user_seconds)
        self._life = 0  # counts everything but sampled tokens
        self._stopped = threading.Event()
        self._jobs: list[Job] = []  # whose waiters have to hear when the loop ends
        self._jobs_lock = threading.Lock()
        self._context_ids: dict[tuple[str, str], int] = {}  # the index that each id stands for
        self.statistics = LoopStatistics()

    def rollout(self, leases: list[Lease]) -> Job:
        """Roll these conversations out; returns at once."""
        job = Job(len(leases))
        return self._submit(job, lambda: self._take(job, [(job, lease) for lease in leases]))

    def respond(self, requests: list[SampleRequest]) -> Job:
        """Sample these responses; returns at once. SampleRequest ids have to be unique among everything in flight."""
        job = Job(len(requests))
        return self._submit(job, lambda: self._take(job, [(job, request) for request in requests]))

    def load(self, weights: Iterator[tuple[str, Any]], version: int) -> None:
        """Load weights between two steps; returns when it is done. Raises what the engine raises."""
        self._between_steps(lambda: self._engine.load_weights(weights, version), f"weights of version {version}")

    def reset(self) -> None:
        """Make the engine forget what it has cached."""
        self._between_steps(self._engine.reset_cache, "a cache to be forgotten")

    def abandon(self) -> None:
        """Forget everything in flight between two steps: open jobs fail, slow users' answers are ignored."""
        with self._jobs_lock:
            abandoned = [job for job in self._jobs if not job.done.is_set()]

        def forget() -> None:
            self._engine.abort(list(self._speaking))
            self._speaking.clear()
            self._listening.clear()
            self._waiting.clear()
            for job in abandoned:
                job.error = EngineError("this work was abandoned")
                job.done.set()

        self._between_steps(forget, "work to be abandoned")

    def give_up(self, reason: str) -> None:
        """Let the waiters of every open job go with what is finished, though a step may never return. The loop is lost."""
        with self._jobs_lock:
            self._stopped.set()
            for job in self._jobs:
                if not job.done.is_set():
                    job.error = EngineError(reason)
                    job.done.set()

    @property
    def progress(self) -> int:
        """A number that changes while tokens are sampled, users answer, or users are waited for within their deadline."""
        return self._life + self._engine.progress

    def _alive(self) -> None:
        self._life += 1

    @property
    def stopped(self) -> bool:
        """Whether `run` has ended or is about to: nothing that is submitted now will be done."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Make `run` return after its current step."""
        self._stopped.set()

    def run(self) -> None:
        """Step until `stop`. When the loop ends every open job fails with the reason; an engine failure is raised."""
        reason: Exception = EngineError("this worker's dialogue loop was stopped")
        try:
            while not self._stopped.is_set():
                self.step()
        except Exception as error:
            reason = error
            raise
        finally:
            with self._jobs_lock:
                self._stopped.set()
            for job in self._jobs:
                if not job.done.is_set():
                    job.error = reason
                    job.done.set()

    def step(self) -> None:
        """Take in new work and the answers of slow users, advance the engine once."""
        idle = not self._speaking and (not self._waiting or len(self._listening) >= self._concurrency)
        self._receive(IDLE_SECONDS if idle and not self._listening else 0.0)
        self._take_answers(IDLE_SECONDS if idle and self._listening else 0.0)
        self._admit()
        self.statistics.most_in_flight = max(self.statistics.most_in_flight, len(self._speaking))
        if not self._speaking:
            self._life += bool(self._listening)
            return
        started = time.perf_counter()
        generations = self._engine.step()
        self.statistics.engine_seconds += time.perf_counter() - started
        self.statistics.steps += 1
        for generation in generations:
            self._spoke(generation)

    def _between_steps(self, action: Callable[[], object], what: str) -> None:
        """Run a function on the loop's thread between two steps; returns when it is done. Raises what it raises."""
        job = Job(1)

        def command() -> None:
            try:
                action()
            except Exception as error:
                job.error = error
            job.done.set()

        if not self._submit(job, command).done.wait(LOAD_SECONDS):
            raise EngineError(f"{what} waited {LOAD_SECONDS:.0f} s for the engine to finish a step")
        if job.error:
            raise job.error

    def _submit(self, job: Job, command: Callable[[], None]) -> Job:
        with self._jobs_lock:
            if self._stopped.is_set():
                raise EngineError("this worker's dialogue loop has stopped; its engine failed earlier")
            self._jobs = [open_job for open_job in self._jobs if not open_job.done.is_set()] + [job]
        self._inbox.put(command)
        return job

    def _take(self, job: Job, work: list[Work]) -> None:
        if not job.done.is_set():  # not abandoned meanwhile
            self._waiting.extend(work)
            job._check()

    def _receive(self, wait: float) -> None:
        try:
            while True:
                command = self._inbox.get(timeout=wait) if wait else self._inbox.get_nowait()
                command()
                self._alive()
                wait = 0.0
        except queue.Empty:
            return

    def _admit(self) -> None:
        while self._waiting and len(self._speaking) + len(self._listening) < self._concurrency:
            job, work = self._waiting.popleft()
            if isinstance(work, SampleRequest):
                self._speaking[work.id] = (job, None)
                self._engine.submit(work)
                continue
            with _recorded(job, work.id):
                dialogue = self._called(work, Dialogue, work, self._environment, self._chat, self._limits)
                self._check_context(dialogue.driver)
                self._ask(job, dialogue, dialogue.driver.opening)

    def _check_context(self, driver: Driver) -> None:
        """Conversations are grouped by their context's id: two contexts with the same id would be treated as one."""
        context = driver.context
        first = self._context_ids.setdefault((context.split, context.id), context.index)
        if first != context.index:
            raise driver.wrong(f"contexts {first} and {context.index} have this same id; each needs an id of its own")

    def _spoke(self, generation: Generation) -> None:
        job, dialogue = self._speaking.pop(generation.id)
        self.statistics.tokens += len(generation.tokens)
        if dialogue is None:
            job.generations[generation.id] = generation
            job._check()
            return
        with _recorded(job, dialogue.lease.id):
            self._ask(job, dialogue, dialogue.driver.reply, dialogue.add_agent_turn(generation))

    def _ask(self, job: Job, dialogue: Dialogue, question: Callable[..., Reply], *arguments: str) -> None:
        if dialogue.driver.user.blocking:
            self._listening[self._users.submit(self._who(dialogue.lease), question, *arguments)] = (job, dialogue)
            return
        started = time.perf_counter()
        self._answered(job, dialogue, self._called(dialogue.lease, question, *arguments))
        self.statistics.user_seconds += time.perf_counter() - started

    def _called(self, lease: Lease, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a call of the environment's code. Raises DataError past the user's deadline."""
        return self._users.run(self._who(lease), function, *arguments, alive=self._alive)

    def _who(self, lease: Lease) -> str:
        return f"{self._environment.name}: the user of conversation {lease.id}"

    def _take_answers(self, wait: float) -> None:
        if wait:
            self._stopped.wait(wait)
        self._users.expire()
        for future in [future for future in self._listening if future.done()]:
            job, dialogue = self._listening.pop(future)
            with _recorded(job, dialogue.lease.id):
                self._answered(job, dialogue, future.result())

    def _answered(self, job: Job, dialogue: Dialogue, reply: Reply) -> None:
        request = dialogue.add_user_turn(reply)
        if request is None:
            job.conversations.append(self._called(dialogue.lease, dialogue.conversation))
            job._check()
            return
        given = dialogue.given
        if given is not None:
            self._ask(job, dialogue, dialogue.driver.reply, dialogue.add_agent_turn(given))
            return
        self._speaking[request.id] = (job, dialogue)
        self._engine.submit(request)


class _recorded:
    """A context in which an error becomes a failure of the job, with its cause, instead of ending the loop."""

    def __init__(self, job: Job, identity: str) -> None:
        self._job, self._identity = job, identity

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if error is None:
            return False
        if not isinstance(error, Exception):
            return False
        if not isinstance(error, MtrlError) or error.__cause__ is not None:
            logger.error("conversation %s failed", self._identity, exc_info=error)
        self._job.failures.append(Failure.of(self._identity, error))
        self._job._check()
        return True
