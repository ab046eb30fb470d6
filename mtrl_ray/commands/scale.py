"""`mtrl scale`: how many rollout workers a living run has, and how many it is to have.

Its bounds are what the run itself says (`rollout.requests`): nothing of its environment or its secrets is needed here.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtrl_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from mtrl_ray.rollout.requests import FleetState

AUTO = "auto"


def scale(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that is being trained.")],
    workers: Annotated[
        str | None, typer.Argument(metavar="[N|auto]", help="Workers to have; auto: as demand says. Without it: show.")
    ] = None,
) -> None:
    """Change the number of a living run's rollout workers, within its rollout.workers."""
    from mtrl_ray.rollout.requests import ask, living
    from mtrl_ray.run.folder import written_settings

    number = _number(workers)
    allowed = written_settings(run)["rollout"]["workers"]
    least, most = (allowed["min"], allowed["max"]) if isinstance(allowed, dict) else (allowed, allowed)
    if least == most:
        raise ConfigurationError(
            f"the run {str(run)!r} has a fixed number of workers, {most}; start or resume it with "
            "'rollout.workers={min: 1, max: 4}' to scale it"
        )
    _show(living(run) if workers is None else ask(run, number))


def _number(text: str | None) -> int | None:
    if text is None or text == AUTO:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(f"{text!r} is not a number of workers; give a whole number of at least 1, or {AUTO}")
    return int(text)


def _show(state: "FleetState") -> None:
    phases = {"ready": state.ready, "starting": state.starting, "unhealthy": state.unhealthy, "leaving": state.leaving}
    shown = ", ".join(f"{count} {phase}" for phase, count in phases.items() if count)
    by = "by hand" if state.by == "hand" else "as demand says"
    typer.echo(f"{state.wanted} of {state.least} to {state.most} workers wanted, {by}; {shown or 'none there'}")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(scale)
