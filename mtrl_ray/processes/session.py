"""Connecting to Ray: the cluster that is named, the one a job runs in, or a local Ray of this process.

A Ray of one's own gets as many logical CPUs as the run asks for, so that two workers and a learner also run on two
cores; what a cluster lacks is said before any actor waits for it. It asks for a token, and listens on this machine alone.
"""

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from mtrl_cluster.authentication import join, switch_on
from mtrl_cluster.loopback import confine, is_here
from mtrl_cluster.task_processes import keep
from mtrl_ray.errors import ConfigurationError, EngineError
from mtrl_ray.settings.tree import TINY, Settings

OBJECT_STORE_BYTES = 512 * 2**20
"""Of an own Ray that only moves the tiny model; others get Ray's own share of the memory."""

REACH_SECONDS = 10.0
"""For a head node to accept a connection."""


SENTENCE = 400
"""Longest cause shown, in characters."""


@dataclass(frozen=True)
class Connection:
    """The connection of a run: the address, the dashboard's host and port, what the cluster lacks (None: nothing)."""

    address: str
    dashboard: str | None
    shortage: str | None


@contextmanager
def connected(
    settings: Settings, address: str | None = None, runs: int = 1, prepare: Callable[[], object] | None = None
) -> Iterator[Connection]:
    """Ray for `runs` runs of these settings at a time, shut down at the end.

    `prepare` is called once in each process of the cluster that works for this one, before anything else.
    Raises EngineError if no cluster answers or none can be started, ConfigurationError for an address that is no cluster's.
    """
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    # Whoever waits for a result gets its error as a sentence; Ray would also print the tracebacks of all that depended on it.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    _check_reachable(target)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if prepare is not None:
        options["runtime_env"] = {"worker_process_setup_hook": prepare}
    if target == "local" or is_here(target):
        confine()
    if target != "local":
        join()
    else:
        switch_on()
        keep()
        cpus, _ = demand(settings)
        options |= {"num_cpus": max(os.cpu_count() or 1, math.ceil(runs * cpus)), "include_dashboard": True}
        if settings.model.path == TINY:
            options |= {"object_store_memory": runs * OBJECT_STORE_BYTES}
    on_stop = signal.getsignal(signal.SIGTERM)
    try:
        context = ray.init(address=target, **options)
    except Exception as error:  # Ray raises bare Exceptions, too, with the end of a log as their text
        raise _not_connected(target, error) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_stop)  # Ray's own answer, set by now, is to end with its native stack
    try:
        yield Connection(target, context.dashboard_url, shortage(settings))
    finally:
        ray.shutdown()


def _not_connected(target: str, error: Exception) -> EngineError:
    """What `ray.init` raised, in one sentence; of a log, its last line."""
    said = " ".join((str(error).strip().splitlines() or [type(error).__name__])[-1].split())[:SENTENCE]
    what = "Ray cannot be started on this machine" if target == "local" else f"no Ray cluster answers at {target!r}"
    return EngineError(f"{what}: {said}")


def _check_reachable(target: str) -> None:
    """Fail fast: Ray itself tries for minutes to reach a missing head node."""
    if "://" in target:
        raise ConfigurationError(
            f"the address {target!r} is not that of a cluster; give its head node's (host:6379), "
            "or submit a job to its job server: mtrl submit RECIPE --address http://host:8265"
        )
    host, colon, port = target.rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise EngineError(f"no Ray cluster answers at {target!r}: {error}") from None


def demand(settings: Settings, workers: int | None = None) -> tuple[float, float]:
    """CPUs and GPUs that the run's actors hold while it goes on with so many rollout workers; by default all it may have,
    spares included."""
    rollout, learner = settings.rollout, settings.learner
    learners = learner.processes
    if workers is None:
        workers, learners = rollout.bounds[1] + rollout.spares, learners * (1 + learner.spare)
    return workers * rollout.cpus + learners * learner.cpus, workers * rollout.gpus + learners * learner.gpus


def shortage(settings: Settings) -> str | None:
    """A message if the cluster is too small for the run's minimum of actors and has to grow; else None."""
    have = ray.cluster_resources()
    for name, wanted in zip(("CPU", "GPU"), demand(settings, settings.rollout.bounds[0]), strict=True):
        if wanted > have.get(name, 0.0):
            return (
                f"the run asks for {wanted:g} {name}s (rollout.workers x rollout.{name.lower()}s + learner.processes x "
                f"learner.{name.lower()}s); the cluster has {have.get(name, 0.0):g} and has to grow"
            )
    return None
