"""`mtrl study`: complete the runs of a study, and write its table, figures and commands."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from mtrl_ray.commands.train import JsonOption, OverridesArgument, write_json
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.run.stopping import exit_code


def study(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a study, or a YAML file.")],
    overrides: OverridesArgument = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds to run instead of the study's, for example 0,1,2.")] = None,
    only: Annotated[str, typer.Option(metavar="AXIS=VALUE,…", help="Run only these cells.")] = "",
    minutes: Annotated[float | None, typer.Option(help="Minutes of training per run.")] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Parallel runs; by default as many as fit on the machine.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace runs that were made with other settings.")] = False,
    show: Annotated[
        bool, typer.Option("--list", help="List the runs with their states and commands, without running them.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder; by default docs/results in a checkout, otherwise the runs' folder."),
    ] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of the runs; by default runs/studies/NAME.")] = None,
    kept: Annotated[
        Path | None,
        typer.Option(
            "--keep", metavar="FOLDER", help="Copy finished runs to this folder, without checkpoints and tokens."
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Address of a running Ray cluster; by default a new local one.")
    ] = None,
    json_path: JsonOption = None,
) -> None:
    """Run a table of runs (algorithms, tasks, seeds, …) and write it with intervals and learning curves."""
    from mtrl_ray.studies.archive import archive
    from mtrl_ray.studies.cells import make_cells, parse_choice, parse_seeds
    from mtrl_ray.studies.definition import read_definition
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
        raise ConfigurationError(f"--only {only}: the study {title} excludes every such cell, so nothing would run")
    if show:
        _list(chosen)
        return
    output = Output(title, out or _results() or folder, _command(name, overrides or [], seeds, minutes, runs))
    output.check()
    failed = _run(definition, cells, chosen, Session(typer.echo, address, parallel, fresh), output, json_path)
    if kept is not None:
        typer.echo(f"kept: {archive(chosen, kept)} runs in {kept}")
    if failed:
        raise typer.Exit(1)


def _run(definition: Any, cells: Any, chosen: Any, session: Any, output: Any, json_path: Path | None) -> int:
    from mtrl_ray.studies.runner import run_cells
    from mtrl_ray.studies.speed import failing, fallen
    from mtrl_ray.studies.writing import write_study

    result: dict[str, Any] = {}

    def write() -> None:
        nonlocal result
        result = write_study(definition, cells, output)
        write_json(json_path, result)

    try:
        failed = run_cells(chosen, session, ended=write)
    except KeyboardInterrupt as error:
        typer.echo("interrupted; the same command continues the study", err=True)
        write()
        raise typer.Exit(exit_code(error)) from None
    write()
    typer.echo(f"table: {output.folder / f'{output.name}.md'}")
    if definition.closes is not None:
        few = failing(result["speeds"], definition.closes)
        for row in few:
            gap = "no gap" if row["gap"] is None else f"{row['gap']:.0%} of the gap"
            typer.echo(f"seed {row['seed']} closed {gap}; {definition.closes:.0%} are wanted", err=True)
        failed += len(few)
    if definition.holds:
        low = fallen(result["speeds"])
        for row in low:
            said = (
                f"seed {row['seed']} fell to {row['lowest']:.3f}; its start's interval begins at {row['start_low']:.3f}"
            )
            typer.echo(said, err=True)
        failed += len(low)
    return failed


def _list(cells: Any) -> None:
    from mtrl_ray.studies.runs import state

    for cell in cells:
        typer.echo(f"{state(cell):>8}  {cell.name}\n          {cell.command}")


def _results() -> Path | None:
    """`docs/results` if this package is in a checkout, otherwise None."""
    import mtrl_ray

    folder = Path(mtrl_ray.__file__).parents[1] / "docs" / "results"
    return folder if folder.is_dir() else None


def _command(name: str, overrides: list[str], seeds: str | None, minutes: float | None, runs: Path | None) -> str:
    """The command for the whole table, independent of which cells run now and how many in parallel."""
    options = {"--seeds": seeds, "--minutes": minutes, "--runs": runs}
    given = [text for option, value in options.items() if value is not None for text in (option, str(value))]
    return shlex.join(["mtrl", "study", name, *overrides, *given])


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(study)
