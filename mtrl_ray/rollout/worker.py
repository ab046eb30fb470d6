"""The rollout worker: a Ray actor with one engine, one dialogue loop, and no state that matters.

The loop runs on a thread of its own. Every call of the actor hands it a job and waits for that job alone, so several chunks of
leases, and single responses, share the engine's steps. A call names the least version of the weights it may be sampled under;
the worker pulls it from the store first.

An engine that fails ends the worker's process; what was finished is returned before. A worker may die at any moment: its
leases are handed out again, and its successor pulls the newest weights.
"""

import logging
import os
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

from mtrl_envs.registry import make
from mtrl_ray.dialogue.chat import chat_format
from mtrl_ray.dialogue.conversation import Finish
from mtrl_ray.dialogue.responses import RESPONSES
from mtrl_ray.errors import EngineError
from mtrl_ray.processes.failures import Failure
from mtrl_ray.processes.waiting import fetch
from mtrl_ray.rollout.choice import engine_name, make_engine
from mtrl_ray.rollout.dialogue import Limits
from mtrl_ray.rollout.engine import Generation, SampleRequest
from mtrl_ray.rollout.lease import Lease, derive_seed
from mtrl_ray.rollout.loop import DialogueLoop, Job
from mtrl_ray.rollout.sifting import sift
from mtrl_ray.settings.tree import Settings
from mtrl_ray.weights.store import materialise

logger = logging.getLogger(__name__)

PULL_SECONDS = 600.0
"""Longest wait for a model's files or weights on their way here."""
FAREWELL_SECONDS = 1.0
"""For open calls to return the engine's error before the process ends."""


@dataclass(frozen=True)
class Report:
    """The few numbers about a chunk of work that pass through the driver.

    `up`: since when the worker's engine has been ready (`time.time`); `node`, `pid`: where it is; `agent_tokens`: sampled
    tokens of what finished; `seconds`: from the call to its return; `version`: of the weights.
    """

    worker: int
    up: float
    node: str
    pid: int
    finished: int
    agent_tokens: int
    agent_turns: int
    score_sum: float
    seconds: float
    version: int
    failures: list[Failure] = field(default_factory=list)
    error: str | None = None
    """Why the worker's engine can do nothing more, if it failed before all was finished."""
    unfinished: frozenset[str] = frozenset()
    """Then: ids of the conversations that neither finished nor failed by themselves."""


class RolloutWorker:
    """Wrapped as a threaded Ray actor by the fleet."""

    def __init__(self, number: int, settings: Settings, model_path: str, store: str, threads: int = 1) -> None:
        self._number, self._store = number, ray.get_actor(store)
        path = materialise(model_path, fetch(self._store.files.remote(), "the model's files", PULL_SECONDS))
        rollout = settings.rollout
        self._chat = chat_format(path)
        self._limits = Limits(rollout.response_tokens, settings.model.context_length, rollout.temperature)
        environment = make(settings.environment.name, **settings.environment.options)
        self._engine_kind = engine_name(rollout.engine)
        self._pulling = threading.Lock()
        self._version = 0  # the model folder's own weights
        self._abandoned = 0  # times
        self._fetching, self._fetched_for = False, 0  # weights, within their own deadline; how often that was seen
        self._epoch: int | None = None  # of the store's versions; the folder's weights are of none
        started: Future[DialogueLoop] = Future()

        def serve() -> None:
            try:
                import torch

                torch.set_num_threads(threads)
                engine = make_engine(path, self._chat.stop_ids, rollout, settings.model)
                started.set_result(
                    DialogueLoop(
                        engine, self._chat, environment, self._limits, rollout.concurrency, rollout.user_seconds
                    )
                )
            except BaseException as error:
                started.set_exception(error)
                return
            self._run(started.result())

        # The engine is made on the thread that steps it: OpenMP counts threads per thread, and vLLM's kernels compare.
        threading.Thread(target=serve, name="engine", daemon=True).start()
        self._loop = started.result()
        self._up, self._node = time.time(), ray.get_runtime_context().get_node_id()
        self._pull(fetch(self._store.newest.remote(), "the newest version of the weights"))

    def ready(self) -> dict[str, Any]:
        """Returns when the engine runs: worker number, engine, weight version, node, process id, since when (`up`).

        Raises EngineError if the engine has failed and this process is about to end.
        """
        if self._loop.stopped:
            raise EngineError(f"the engine of rollout worker {self._number} has failed; the worker is about to end")
        return {
            "worker": self._number,
            "engine": self._engine_kind,
            "version": self._version,
            "node": self._node,
            "pid": os.getpid(),
            "up": self._up,
        }

    def watch(self) -> None:
        """Never returns: the call fails when this process ends."""
        threading.Event().wait()

    def progress(self) -> int:
        """A number that changes as long as this worker makes progress (`rollout.heartbeats`)."""
        self._fetched_for += self._fetching
        return self._loop.progress + self._fetched_for

    def give_up(self, reason: str) -> None:
        """Let open calls return what is finished, or fail with this reason; for a worker that will be killed."""
        self._loop.give_up(reason)

    def rollout(self, leases: list[Lease], version: int, exact: bool = False) -> tuple[pa.Table, Report]:
        """Roll out these conversations under weights of at least `version`: rows of `conversation.SCHEMA`, and a report.

        exact: from an engine that has cached nothing, all or none of them. Otherwise an engine that fails leaves what was
        finished (`Report.error`).
        """
        started = time.perf_counter()
        self._pull(version)
        if exact:
            self._loop.reset()
        job = self._loop.rollout(leases)
        job.done.wait()
        if exact:
            _finished(job)
        done, failed = list(job.conversations), list(job.failures)
        table, kept, refused = sift(done)
        settled = {one.id for one in done} | {failure.id for failure in failed}
        agent_turns = [turn for done in kept for turn in done.turns if turn.logprobs or turn.finish]
        report = Report(
            worker=self._number,
            up=self._up,
            node=self._node,
            pid=os.getpid(),
            finished=len(kept),
            agent_tokens=sum(len(turn.tokens) for turn in agent_turns),
            agent_turns=len(agent_turns),
            score_sum=sum(done.score for done in kept),
            seconds=time.perf_counter() - started,
            version=self._version,
            failures=[*failed, *refused],
            error=None if job.error is None else _account(job),
            unfinished=frozenset(lease.id for lease in leases if lease.id not in settled),
        )
        return table, report

    def respond(
        self,
        states: pa.Table,
        start: int,
        stop: int,
        samples: int,
        seed: int,
        version: int,
        mixture: float = 0.0,
        exact: bool = False,
    ) -> tuple[pa.Table, Report]:
        """Sample `samples` responses in each of the logged states `[start, stop)`; no user is asked.

        `states`: columns conversation_id, turn, tokens (the history's ids). `mixture`: the reference's share. Gives rows of
        `responses.RESPONSES`.
        """
        started = time.perf_counter()
        self._pull(version)
        if exact:
            self._loop.reset()
        rows = states.slice(start, stop - start).to_pylist()
        keys = {}
        requests = []
        for row in rows:
            for sample in range(samples):
                key = (row["conversation_id"], row["turn"], sample)
                request = self._request(
                    f"{seed}/{key[0]}/{key[1]}/{sample}", row["tokens"], derive_seed(seed, *key), mixture
                )
                keys[request.id] = key
                requests.append(request)
        job = _finished(self._loop.respond(requests))
        generations = [job.generations[request.id] for request in requests]
        report = Report(
            worker=self._number,
            up=self._up,
            node=self._node,
            pid=os.getpid(),
            finished=len(generations),
            agent_tokens=sum(len(generation.tokens) for generation in generations),
            agent_turns=len(generations),
            score_sum=0.0,
            seconds=time.perf_counter() - started,
            version=self._version,
        )
        return self._responses(generations, keys), report

    def abandon(self) -> None:
        """Drop everything in flight; its calls fail."""
        self._abandoned += 1
        self._loop.abandon()

    def _run(self, loop: DialogueLoop) -> None:
        """The loop; if its engine fails this process ends, and Ray restarts the worker."""
        try:
            loop.run()
        except Exception:
            logger.exception("rollout worker %d: its engine failed", self._number)
            time.sleep(FAREWELL_SECONDS)
            os._exit(1)

    def _request(self, identity: str, prompt: list[int], seed: int, mixture: float) -> SampleRequest:
        room = self._limits.context_length - len(prompt)
        tokens = min(self._limits.response_tokens, room)
        return SampleRequest(identity, prompt, seed, tokens, self._limits.temperature, mixture)

    def _responses(self, generations: list[Generation], keys: dict[str, tuple[str, int, int]]) -> pa.Table:
        rows = [keys[generation.id] for generation in generations]
        columns = {
            "conversation_id": [row[0] for row in rows],
            "turn": [row[1] for row in rows],
            "sample": [row[2] for row in rows],
            "tokens": [generation.tokens for generation in generations],
            "logprobs": [generation.logprobs for generation in generations],
            "versions": [generation.versions for generation in generations],
            "finish": [str(Finish(generation.finish)) for generation in generations],
            "text": [self._chat.decode(generation.tokens) for generation in generations],
        }
        return pa.table(columns, schema=RESPONSES)

    def _pull(self, version: int) -> None:
        abandoned = self._abandoned
        with self._pulling:
            epoch = fetch(self._store.epoch.remote(), "the weight store's epoch")
            if abandoned != self._abandoned:
                raise EngineError("this work was abandoned while it waited for weights")
            if self._version >= version and self._epoch in (None, epoch):
                return
            from mtrl_ray.weights.packed import unpack  # torch: the driver, which names this class, goes without

            self._fetching = True
            try:
                newest, reference = fetch(self._store.get.remote(version), f"the weight store's version {version}")
                packed = fetch(reference[0], f"the weights of version {newest}", PULL_SECONDS)
            finally:
                self._fetching = False
            self._loop.load(unpack(packed), newest)
            self._version, self._epoch = newest, epoch


def _finished(job: Job) -> Job:
    job.done.wait()
    if job.error is not None:
        raise EngineError(_account(job))
    return job


def _account(job: Job) -> str:
    return f"the engine failed with {len(job.conversations)} of {job.expected} done: {job.error}"
