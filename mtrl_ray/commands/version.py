"""`mtrl version`."""

import typer

import mtrl_ray


def version() -> None:
    """Say which version of mtrl-ray this is."""
    typer.echo(mtrl_ray.__version__)


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(version)
