"""A disturbed run as seen from outside: its driver process, the states it reports, its actors' processes."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtrl_cluster.local import LocalCluster, command_of, processes
from mtrl_ray.chaos.driver import State
from mtrl_ray.errors import EngineError

LOG = "driver.log"
START_SECONDS = 300.0
"""For a driver to have its fleet at work."""
STOP_SECONDS = 60.0
"""For a driver to end after a stop signal, before it is killed."""


class Subject:
    """One run on one cluster. `states`: (time, state) as they were reported, oldest first."""

    def __init__(self, cluster: LocalCluster, folder: Path, rng: random.Random) -> None:
        """`folder`: of a prepared run."""
        self._cluster, self._folder, self._rng = cluster, folder, rng
        self._driver: subprocess.Popen[str] | None = None
        self.states: list[tuple[float, State]] = []

    def start(self) -> None:
        """Begin or continue the run; returns at once."""
        with (self._folder / LOG).open("a") as log:
            self._driver = subprocess.Popen(
                [sys.executable, "-m", "mtrl_ray.chaos.driver", str(self._folder), self._cluster.address],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        threading.Thread(target=self._listen, args=(self._driver.stdout,), daemon=True).start()

    def wait(self, holds: Callable[[State], bool], seconds: float, since: float = 0.0) -> float | None:
        """Wait for a state reported after `since` that satisfies `holds`; returns its time, or None past the deadline.

        Raises EngineError if the driver ends by itself.
        """
        deadline = time.monotonic() + seconds
        seen = sum(told <= since for told, _ in self.states)
        while time.monotonic() < deadline:
            states = list(self.states)
            for place in range(seen, len(states)):
                if holds(states[place][1]):
                    return states[place][0]
            seen = len(states)
            self.check()
            time.sleep(0.05)
        return None

    def check(self) -> None:
        """Raises EngineError if the driver has ended by itself."""
        if self._driver is not None and self._driver.poll() is not None:
            said = [line for line in (self._folder / LOG).read_text().splitlines() if line.strip()]
            raise EngineError(
                f"the run's driver ended with code {self._driver.returncode}; its log {self._folder / LOG} ends with: "
                f"{said[-1][:400] if said else 'nothing'}"
            )

    @property
    def now(self) -> State | None:
        """The newest state."""
        return self.states[-1][1] if self.states else None

    def kill(self, kind: str) -> set[int]:
        """Kill a part of that kind; its processes, none if there is none to be killed just now.

        Of workers and learners one that is at work, no spare; of the nodes one that holds a worker or a learner, not the
        driver's.
        """
        state = self.now
        if state is None:
            return set()
        if kind == "driver":
            return self._kill_driver()
        if kind == "node":
            return self._kill_node(state.nodes)
        those = {"learner": state.learners, "buffer": state.buffers}.get(kind, state.workers)
        there = {process.pid: process for process in processes(self._cluster.mark)}
        victims = [there[one] for one in those if one in there and one not in state.spare]
        if not victims:
            return set()
        victim = self._rng.choice(victims)
        if kind == "engine":
            self._tell(f"engine {victim.pid}")
        else:
            victim.send_signal(signal.SIGKILL)
        return {victim.pid}

    def stop(self) -> float:
        """Send a stop signal; seconds until the driver had ended."""
        assert self._driver is not None
        begun = time.monotonic()
        self._driver.send_signal(signal.SIGTERM)
        try:
            self._driver.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._driver.kill()
        self._end()
        return time.monotonic() - begun

    def _kill_driver(self) -> set[int]:
        assert self._driver is not None
        self._driver.kill()
        self._end()
        return {self._driver.pid}

    def _kill_node(self, nodes: dict[str, list[int]]) -> set[int]:
        there = {part: one for one in processes(self._cluster.mark) for part in command_of(one)}
        raylets = {node: there[f"--node_id={node}"] for node in nodes if f"--node_id={node}" in there}
        if not raylets:
            return set()
        node = self._rng.choice(sorted(raylets))
        raylets[node].send_signal(signal.SIGKILL)
        return set(nodes[node])

    def _end(self) -> None:
        assert self._driver is not None and self._driver.stdin is not None
        self._driver.wait()
        with contextlib.suppress(BrokenPipeError):
            self._driver.stdin.close()

    def _listen(self, said: Any) -> None:
        with said:
            for line in said:
                told = json.loads(line)
                self.states.append((told.pop("time"), State(**told)))

    def _tell(self, command: str) -> None:
        assert self._driver is not None and self._driver.stdin is not None
        self._driver.stdin.write(f"{command}\n")
        self._driver.stdin.flush()
