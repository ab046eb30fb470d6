"""`mtrl theory`: check the theorems behind the algorithms on random games."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtrl_ray.commands.train import JsonOption, write_json
from mtrl_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

    from mtrl_ray.tabular.checks import Check, Suite

GAMES, SEED = 240, 0


def folder(path: Path) -> Path:
    """Create the folder before the checks start. Raises ConfigurationError if it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(0, "no permission to write")
    except OSError as error:
        raise ConfigurationError(f"--out {path}: {error.strerror}; give a folder that can be written") from None
    return path


def theory(
    games: Annotated[int, typer.Option(help="Number of random preference games, at least 20.")] = GAMES,
    seed: Annotated[int, typer.Option(help="Random seed.")] = SEED,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Folder for the page and the figure.", callback=folder)
    ] = Path("runs/theory"),
    json_path: JsonOption = None,
) -> None:
    """Check the theorems of Iterative PPO, ITPO and MTPO on small games, with exact values. Exits with 1 if one fails."""
    from rich.console import Console

    from mtrl_ray.tabular.checks import Suite
    from mtrl_ray.tabular.report import write_report

    suite, console = Suite(games, seed), Console()
    results = _check(suite, console)
    with console.status("drawing"):
        page = write_report(out, suite, results, _command(games, seed, out))
    _show(console, results)
    console.print(f"page and figure: {page}", highlight=False, soft_wrap=True)
    write_json(json_path, {"checks": [check.as_dict() for check in results]})
    if not all(check.holds for check in results):
        raise typer.Exit(1)


def _check(suite: "Suite", console: "Console") -> "list[Check]":
    from mtrl_ray.monitoring.heartbeat import Steps
    from mtrl_ray.tabular.checks import CHECKS, statement

    results = []
    steps = Steps(len(CHECKS), lambda line: typer.echo(line, err=True))
    with console.status("") as status:
        for number, check in enumerate(CHECKS, start=1):
            status.update(f"{number} of {len(CHECKS)}: {statement(check)}")
            if not console.is_terminal:
                steps.begin(statement(check))
            results.append(check(suite))
    return results


def _show(console: "Console", results: "list[Check]") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    table.add_column("")
    table.add_column("check")
    for column in ("error", "bound", "games"):
        table.add_column(column, justify="right")
    for check in results:
        result = Text("holds", style="green") if check.holds else Text("FAILS", style="bold red")
        table.add_row(result, check.name, f"{check.error:.1e}", f"{check.bound:.1e}", str(check.games))
    console.print(table)
    failed = sum(not check.holds for check in results)
    console.print(f"{len(results) - failed} hold, {failed} fail", highlight=False)


def _command(games: int, seed: int, out: Path) -> str:
    changed = [("--games", games, GAMES), ("--seed", seed, SEED)]
    options = [text for name, value, usual in changed if value != usual for text in (name, str(value))]
    return shlex.join(["mtrl", "theory", *options, "--out", str(out)])


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(theory)
