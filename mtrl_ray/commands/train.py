"""`mtrl train`: run a recipe to its end, here or on a running cluster, or continue a run."""

import json
import math
import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.run.stopping import exit_code


def writable(path: Path | None) -> Path | None:
    """Find out before the work starts that a result could not be written. Raises ConfigurationError."""
    if path is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(0, "it is a folder, or may not be written")
    except OSError as error:
        raise ConfigurationError(f"--json {path}: {error.strerror}; give a file that can be written") from None
    return path


RecipeArgument = Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe's name, or a YAML file.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Settings to change.")
]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="PATH", help="Write the result to this file too.", callback=writable),
]


def train(
    recipe: RecipeArgument = None,
    overrides: OverridesArgument = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Continue the run in this folder.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace a run of the same name.")] = False,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; by default the job's own, or a new one here.")
    ] = None,
    json_path: JsonOption = None,
    command: Annotated[str | None, typer.Option(hidden=True, help="The command that a job stands for.")] = None,
) -> None:
    """Train a policy: evaluate, iterate, evaluate again, write the report."""
    from mtrl_ray.monitoring.live import LiveView
    from mtrl_ray.run.driving import drive
    from mtrl_ray.run.folder import resumed_settings
    from mtrl_ray.run.preflight import preflight
    from mtrl_ray.run.recipes import load

    given = [text for text in (recipe, *(overrides or [])) if text is not None]
    if resume is not None:
        if fresh:
            raise ConfigurationError("--resume continues a run and --fresh replaces one; give one of them")
        settings = resumed_settings(resume, given)
    elif recipe is not None:
        settings = load(recipe, overrides or [])
        preflight(settings, warn)
    else:
        raise ConfigurationError(
            "give a recipe (mtrl train sales), or a run to continue (mtrl train --resume runs/sales)"
        )
    about = settings.run

    def shown(done: int) -> LiveView:
        return LiveView(about.name, about.iterations, done=done, minutes=about.minutes)

    typed = command or shlex.join(["mtrl", "train", *given, *(["--fresh"] if fresh else [])])
    try:
        summary = drive(settings, shown, typed, resume is not None, fresh, address)
    except KeyboardInterrupt as error:
        typer.echo(f"interrupted; continue with: mtrl train --resume {shlex.quote(str(settings.run_folder))}", err=True)
        raise typer.Exit(exit_code(error)) from None
    _show(settings.run_folder, summary)
    write_json(json_path, summary)


def warn(sentence: str) -> None:
    """Say what may be wrong, before the work starts."""
    typer.secho(f"mtrl: warning: {sentence}", fg=typer.colors.YELLOW, err=True)


def write_json(path: Path | None, result: Any) -> None:
    """Write a command's result if `--json` asks for it; numbers that are not finite become null.

    Raises ConfigurationError if that cannot be written.
    """
    if path is None:
        return
    try:
        path.write_text(json.dumps(_finite(result), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise ConfigurationError(f"--json {path}: {error.strerror}; give a file that can be written") from None


def show_estimates(estimates: dict[str, Any]) -> None:
    """One line per estimate `{mean, low, high, n, clusters}`; what is undefined is a dash."""
    for name, estimate in estimates.items():
        mean, low, high = (number(estimate[key]) for key in ("mean", "low", "high"))
        clusters = estimate.get("clusters", estimate["n"])
        grouped = "" if clusters == estimate["n"] else f" in {clusters} clusters"
        typer.echo(f"{name:>17}  {mean}  [{low}, {high}]  n={estimate['n']}{grouped}")


def number(value: float | None) -> str:
    """Three digits after the point; a dash for what is not known or not finite."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(folder: Path, summary: dict[str, Any]) -> None:
    show_estimates(summary)
    typer.echo(f"report: {folder / 'report.html'}")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(train)
