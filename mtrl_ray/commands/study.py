"""`mtrl study`: a table of runs, continued where it was left, with its figures and the commands behind it."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from mtrl_ray.commands.train import JsonOption, OverridesArgument, write_json
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.run.stopping import exit_code


def study(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A study's name, or a YAML file.")],
    overrides: OverridesArgument = None,
    seeds: Annotated[str | None, typer.Option(help="Instead of the study's own: 0,1,2")] = None,
    only: Annotated[str, typer.Option(metavar="AXIS=VALUE,…", help="Run these cells alone.")] = "",
    minutes: Annotated[float | None, typer.Option(help="Of training, per run.")] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; by default what the machine has room for.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace runs that were made with other settings.")] = False,
    show: Annotated[
        bool, typer.Option("--list", help="Show the runs, their states and commands; run nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the table; by default docs/results of a checkout, else the runs'.")
    ] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of the runs; by default runs/studies/NAME.")] = None,
    kept: Annotated[
        Path | None,
        typer.Option("--keep", metavar="FOLDER", help="Copy finished runs there, without checkpoints and tokens."),
    ] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; by default a new one here.")] = None,
    json_path: JsonOption = None,
) -> None:
    """Run a table of runs (algorithms, tasks, seeds, …) and write it with intervals and learning curves."""
    from mtrl_ray.studies.cells import make_cells, parse_choice, parse_seeds
    from mtrl_ray.studies.definition import read_definition
    from mtrl_ray.studies.keeping import keep
    from mtrl_ray.studies.runner import Session
    from mtrl_ray.studies.writing import Output

    title, definition = read_definition(name)
    choice = parse_choice(definition, only)
    picked = definition.seeds if seeds is None else parse_seeds(seeds)
    given = [*(overrides or []), *([] if minutes is None else [f"run.minutes={minutes}"])]
    folder = runs or Path("runs/studies") / title
    cells = make_cells(title, definition, picked, folder, given)
    chosen = [cell for cell in cells if cell.chosen(choice)]
    if not chosen:
        raise ConfigurationError(f"--only {only}: the study {title} leaves every such cell out; nothing would run")
    if show:
        _list(chosen)
        return
    output = Output(title, out or _results() or folder, _command(name, overrides or [], seeds, minutes, runs))
    output.check()
    failed = _run(definition, cells, chosen, Session(typer.echo, address, parallel, fresh), output, json_path)
    if kept is not None:
        typer.echo(f"kept: {keep(chosen, kept)} runs in {kept}")
    if failed:
        raise typer.Exit(1)


def _run(definition: Any, cells: Any, chosen: Any, session: Any, output: Any, json_path: Path | None) -> int:
    from mtrl_ray.studies.runner import run_cells
    from mtrl_ray.studies.writing import write_study

    def write() -> None:
        write_json(json_path, write_study(definition, cells, output))

    try:
        failed = run_cells(chosen, session, ended=write)
    except KeyboardInterrupt as error:
        typer.echo("interrupted; the same command continues the study", err=True)
        write()
        raise typer.Exit(exit_code(error)) from None
    write()
    typer.echo(f"table: {output.folder / f'{output.name}.md'}")
    return failed


def _list(cells: Any) -> None:
    from mtrl_ray.studies.runs import state

    for cell in cells:
        typer.echo(f"{state(cell):>8}  {cell.name}\n          {cell.command}")


def _results() -> Path | None:
    """`docs/results` where this package lies in a checkout."""
    import mtrl_ray

    folder = Path(mtrl_ray.__file__).parents[1] / "docs" / "results"
    return folder if folder.is_dir() else None


def _command(name: str, overrides: list[str], seeds: str | None, minutes: float | None, runs: Path | None) -> str:
    """The command that makes the whole table; which cells are run today, and how many at once, does not change it."""
    options = {"--seeds": seeds, "--minutes": minutes, "--runs": runs}
    given = [text for option, value in options.items() if value is not None for text in (option, str(value))]
    return shlex.join(["mtrl", "study", name, *overrides, *given])


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(study)
