"""`mtrl credit`: what crediting turns is worth, where the exact credit is known."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mtrl_ray.commands.theory import folder
from mtrl_ray.commands.train import JsonOption, write_json

SEEDS, ITERATIONS = 10, 80


def credit(
    seeds: Annotated[int, typer.Option(min=2, help="Number of seeds: 0, 1, …")] = SEEDS,
    iterations: Annotated[int, typer.Option(min=1, help="Iterations of each training.")] = ITERATIONS,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Folder for the page and the figure.", callback=folder)
    ] = Path("runs/credit"),
    json_path: JsonOption = None,
) -> None:
    """Train tabular policies on conversations of independent turns, with exact and with learned credit. Takes minutes."""
    from mtrl_ray.monitoring.heartbeat import Steps
    from mtrl_ray.tabular.credit import report

    steps = Steps(len(report.tasks()), lambda line: typer.echo(line, err=True))
    rows = report.compare(range(seeds), iterations, steps.begin)
    changed = [("--seeds", seeds, SEEDS), ("--iterations", iterations, ITERATIONS)]
    options = [text for name, value, usual in changed if value != usual for text in (name, str(value))]
    command = shlex.join(["mtrl", "credit", *options, "--out", str(out)])
    typer.echo(f"page and figure: {report.write(out, rows, seeds, iterations, command)}")
    write_json(json_path, {"rows": [row.as_dict() for row in rows]})


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(credit)
