"""A disturbed run as it is seen from outside: its driver process, the states it reports, its actors' processes."""

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

import psutil

from cluster.local import LocalCluster, command_of, processes
from mtrl_ray.chaos.driver import State
from mtrl_ray.errors import EngineError

LOG = "driver.log"
START_SECONDS = 300.0
"""For a driver to have its fleet at work."""
STOP_SECONDS = 60.0
"""For a driver to end after a stop signal, before it is killed."""
TITLES = {"worker": "ray::RolloutWorker", "learner": "ray::LearnerActor", "buffer": "ray::ReplayBuffer"}
"""How Ray names the processes of actors."""


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
        """Until a state reported after `since` satisfies `holds`, asked in order; when that was; None where none did in time.

        Raises EngineError where the driver ends by itself.
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
        """Raises EngineError where the driver has ended by itself."""
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

    def kill(self, kind: str) -> bool:
        """Kill a part of that kind; False where there is none just now."""
        if kind == "engine":
            return self._tell("engine")
        if kind == "driver":
            assert self._driver is not None
            self._driver.kill()
            self._end()
            return True
        victims = self._raylets() if kind == "node" else self._actors(kind)
        if not victims:
            return False
        self._rng.choice(victims).send_signal(signal.SIGKILL)
        return True

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

    def _tell(self, command: str) -> bool:
        assert self._driver is not None and self._driver.stdin is not None
        self._driver.stdin.write(f"{command}\n")
        self._driver.stdin.flush()
        return True

    def _actors(self, kind: str) -> list[psutil.Process]:
        return [process for process in self._processes() if _title(process).startswith(TITLES[kind])]

    def _raylets(self) -> list[psutil.Process]:
        """Of nodes that hold a worker or a learner, the driver's left out."""
        wanted = {f"--node_id={node}" for node in self.now.nodes} if self.now else set()
        return [process for process in self._processes() if wanted.intersection(command_of(process))]

    def _processes(self) -> list[psutil.Process]:
        return processes(self._cluster.mark)


def _title(process: psutil.Process) -> str:
    return (command_of(process) or [""])[0]
