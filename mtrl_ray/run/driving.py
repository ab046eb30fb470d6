"""A run from its settings to its summary: lock, folder, Ray, trainer. The command and the library take this one path."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from mtrl_ray.monitoring.view import View
from mtrl_ray.processes.session import connected
from mtrl_ray.run.checkpoint_store import store_of
from mtrl_ray.run.folder import prepare, write_settings
from mtrl_ray.run.lock import run_lock
from mtrl_ray.run.trainer import run
from mtrl_ray.settings.tree import Settings


def drive(
    settings: Settings,
    shown: Callable[[int], AbstractContextManager[View]],
    command: str,
    resume: bool = False,
    fresh: bool = False,
    address: str | None = None,
    prepare_processes: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Train to the end and give the summary, estimates by name.

    `shown`: makes the view, from the number of iterations that are done. `command`: what the run keeps as the command that made
    it. `resume`: continue the run in the settings' folder; `fresh`: replace it. `prepare_processes`: called in each of the
    run's processes (`session.connected`). Raises what `prepare`, `connected` and `trainer.run` raise.
    """
    with run_lock(settings.run_folder):
        done = 0
        if resume:
            done = max(store_of(settings).numbers(), default=0)
            write_settings(settings)  # not those of a place that could not be opened
        else:
            prepare(settings, fresh, command)
        with connected(settings, address, prepare=prepare_processes) as connection, shown(done) as view:
            if connection.dashboard:
                view.note(f"Ray dashboard: http://{connection.dashboard}")
            if connection.shortage:
                view.note(connection.shortage)
            return run(settings, view, resume)
