"""`mtrl submit`: the same as `mtrl train`, as a job of a Ray cluster, with its log here."""

import shlex
from typing import Annotated

import typer

from mtrl_ray.commands.train import OverridesArgument, warn


def submit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or a YAML file.")],
    overrides: OverridesArgument = None,
    address: Annotated[str, typer.Option(help="The cluster's job server.")] = "http://127.0.0.1:8265",
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace a run of the same name.")] = False,
) -> None:
    """Submit a recipe to a Ray cluster as a job and follow its log."""
    from mtrl_ray.run.jobs import submit as submit_job
    from mtrl_ray.run.preflight import preflight
    from mtrl_ray.run.recipes import load

    settings = load(recipe, overrides or [])
    preflight(settings, warn)
    command = ["mtrl", "submit", recipe, *(overrides or []), "--address", address, *(["--fresh"] if fresh else [])]
    typer.echo(submit_job(settings, address, fresh, shlex.join(command), typer.echo))


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(submit)
