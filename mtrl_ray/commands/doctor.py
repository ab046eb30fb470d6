"""`mtrl doctor`: the checks of `mtrl_ray.doctor.checks` as a table, and the same as JSON."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtrl_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

    from mtrl_ray.doctor.checks import Check

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="PATH", help="Write the checks to this file too.")
    ] = None,
) -> None:
    """Say what this machine has, what does not fit together, and what to do about it."""
    from rich.console import Console

    from mtrl_ray.doctor.checks import examine

    console = Console()
    with console.status("importing torch, ray and vLLM (about 15 s)"):
        checks = examine()
    _show(console, checks)
    if json_path is not None:
        _write(json_path, checks)
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)


def _show(console: "Console", checks: "list[Check]") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    for column in ("", "what", "found"):
        table.add_column(column)
    for check in checks:
        found = Text(check.found)
        if check.advice:
            found.append(f"\n→ {check.advice}", style=COLOURS[check.status])
        table.add_row(Text(check.status, style=COLOURS[check.status]), check.name, found)
    console.print(table)
    counts = {status: sum(check.status == status for check in checks) for status in COLOURS}
    console.print(f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} to fix", highlight=False)


def _write(path: Path, checks: "list[Check]") -> None:
    from mtrl_ray.doctor.checks import report

    try:
        path.write_text(json.dumps(report(checks), indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigurationError(
            f"--json {path}: cannot be written ({error.strerror}); name a file that can"
        ) from error


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(doctor)
