"""`mtrl train`: run a recipe to its end, here or on a running cluster, or continue a run."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mtrl_ray.errors import ConfigurationError

RecipeArgument = Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe's name, or a YAML file.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Settings to change.")
]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="PATH", help="Write the result to this file too.")]


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
) -> None:
    """Train a policy: evaluate, iterate, evaluate again, write the report."""
    from mtrl_ray.config import load
    from mtrl_ray.trainer import prepare, resumed_settings

    if (recipe is None) == (resume is None):
        raise ConfigurationError(
            "give a recipe (mtrl train sales), or a run to continue (mtrl train --resume runs/sales)"
        )
    if resume is not None:
        settings = resumed_settings(resume)
    else:
        settings = load(str(recipe), overrides or [])
        prepare(settings, fresh)
    summary = _run(settings, resume is not None, address)
    _show(settings.run_folder, summary)
    write_json(json_path, summary)


def write_json(path: Path | None, result: Any) -> None:
    """Write a command's result where `--json` asks for it. Raises ConfigurationError where that cannot be written."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise ConfigurationError(f"--json {path}: {error.strerror}; give a path that can be written") from None


def _run(settings: Any, resume: bool, address: str | None) -> dict[str, Any]:
    from cluster.session import connected
    from mtrl_ray.monitoring.live import LiveView
    from mtrl_ray.trainer import run

    run_settings = settings.run
    shown = LiveView(
        run_settings.name, run_settings.iterations, minutes=run_settings.minutes, table=settings.monitoring.live
    )
    with connected(settings, address) as connection, shown as view:
        if connection.dashboard:
            view.note(f"Ray dashboard: http://{connection.dashboard}")
        if connection.shortage:
            view.note(connection.shortage)
        return run(settings, view, resume)


def _show(folder: Path, summary: dict[str, Any]) -> None:
    for name, estimate in summary.items():
        typer.echo(
            f"{name:>8}  {estimate['mean']:.3f}  [{estimate['low']:.3f}, {estimate['high']:.3f}]  n={estimate['n']}"
        )
    typer.echo(f"report: {folder / 'report.html'}")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(train)
