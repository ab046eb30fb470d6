"""`mtrl chaos`: kill parts of a real run at random, and count what is lost."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from mtrl_ray.commands.train import JsonOption, OverridesArgument, write_json
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.run.stopping import StopSignal

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or a YAML file.")]
DEFAULTS = (
    "rollout.workers=2",
    "rollout.spares=1",
    "learner.spare=true",
    "learner.threads=1",
    "algorithm.contexts=16",
)
"""Of the runs, unless the command line says otherwise. A lost learner or driver costs what the iteration had done: a run that
loses a part again and again keeps its iterations short, and has spares. One thread: if a small machine's cores are busy, two
that wait for each other at every step are slower (docs/results/chaos.md)."""


def chaos(
    recipe: RecipeArgument = "sales",
    overrides: OverridesArgument = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="With kills; the same iterations are done without them, too.")
    ] = 15.0,
    every: Annotated[
        float,
        typer.Option(
            min=1.0, help="Seconds from one kill to the next, a quarter more or less; longer during a recovery."
        ),
    ] = 20.0,
    identical: Annotated[
        int | None, typer.Option(min=1, help="Instead: so many runs whose driver is killed and resumed.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is killed when.")] = 0,
    json_path: JsonOption = None,
) -> None:
    """Kill a run's workers, engines, nodes, learner, buffer and driver in turn; check every lease afterwards.

    Unless the overrides say otherwise: two workers, a spare one and a spare learner, for a kill costs the time until another is
    there; algorithm.contexts=16, for it costs up to an iteration; learner.threads=1, for the machine's cores are shared.
    """
    from mtrl_ray.run.recipes import load

    given = [*DEFAULTS, *(overrides or [])]
    if not any(text.startswith("run.folder=") for text in given):
        given.append(f"run.folder={tempfile.mkdtemp(prefix='mtrl-chaos-')}")
    settings = load(recipe, given)
    if settings.run.checkpoints is not None:
        raise ConfigurationError("run.checkpoints is set; mtrl chaos reads the checkpoints of the run's own folder")
    typer.echo(f"runs: {Path(settings.run.folder).absolute()}")
    with StopSignal().listening():  # a cluster of its own processes ends with this one
        if identical is not None:
            from mtrl_ray.chaos.identical import identical as trials

            result = trials(settings, [recipe, *given], identical, seed, typer.echo)
        else:
            from mtrl_ray.chaos.disturbance import disturb

            result = disturb(settings, minutes, every, seed, typer.echo)
    _show(result)
    write_json(json_path, result)


def _show(result: dict[str, Any]) -> None:
    for key, value in result.items():
        typer.echo(f"{key:>18}  {f'{value:.3f}' if isinstance(value, float) else value}")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(chaos)
