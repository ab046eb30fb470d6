"""`mtrl bench`: speed as ratios within one run, and what it takes to grow and to shrink."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mtrl_ray.commands.train import JsonOption, OverridesArgument, write_json
from mtrl_ray.run.stopping import StopSignal

app = typer.Typer(help="Measure speed, as ratios within one run.", no_args_is_help=True)

RECIPE = "sales"
QuickOption = Annotated[bool, typer.Option("--quick", help="One short round: a first look, not a measurement.")]


@app.command()
def rollout(
    overrides: OverridesArgument = None,
    conversations: Annotated[int, typer.Option(help="Per round.")] = 512,
    rounds: Annotated[int, typer.Option(help="Alternations of dialogue and raw generation.")] = 5,
    quick: QuickOption = False,
    json_path: JsonOption = None,
) -> None:
    """Sampled tokens/s of dialogue collection ÷ LLM.generate of the same engine."""
    import torch
    from rich.console import Console

    from mtrl_envs.registry import make
    from mtrl_ray.bench.rollout import bench_rollout
    from mtrl_ray.monitoring.live import LiveView
    from mtrl_ray.run.recipes import load
    from mtrl_ray.run.tiny_model import tiny_model
    from mtrl_ray.settings.tree import TINY

    torch.set_num_threads(1)
    settings = load(RECIPE, overrides or [])
    environment = make(settings.environment.name, **settings.environment.options)
    path = Path(settings.model.path)
    if settings.model.path == TINY:
        with LiveView("bench", 0, table=False, console=Console(stderr=True)) as view:
            path = tiny_model(settings.model, settings.environment, environment, view, settings.rollout)
    if quick:
        conversations, rounds = min(conversations, 64), 1
    _show(bench_rollout(settings, path, conversations, rounds, _say), json_path)


@app.command()
def learner(
    json_path: JsonOption = None,
    rounds: Annotated[int, typer.Option(help="Alternations of the learner and the bare model.")] = 5,
    quick: QuickOption = False,
) -> None:
    """Trained tokens/s of the learner ÷ forward, backward and step of the bare model."""
    from mtrl_ray.bench.learner import bench_learner

    size = {"rounds": 1, "conversations": 64} if quick else {"rounds": rounds}
    _show(bench_learner(**size, say=_say), json_path)


@app.command()
def elastic(
    overrides: OverridesArgument = None,
    json_path: JsonOption = None,
) -> None:
    """Nodes that follow demand in one run: 1, 3, 1, by Ray's own autoscaler on this machine."""
    import tempfile

    from mtrl_ray.bench.elastic import bench_elastic

    small = ["model.warm_start.conversations=500", "model.warm_start.steps=50", "model.warm_start.probe=null"]
    with StopSignal().listening(), tempfile.TemporaryDirectory(prefix="mtrl-elastic-") as folder:
        story = bench_elastic(Path(folder), [*small, *(overrides or [])], typer.echo)
    _show(story.figures(), json_path)


def _say(line: str) -> None:
    """Print progress to standard error, separate from the result."""
    typer.echo(line, err=True)


def _show(result: dict[str, Any], json_path: Path | None) -> None:
    for key, value in result.items():
        typer.echo(f"{key:>36}  {value:.3f}" if isinstance(value, float) else f"{key:>36}  {value}")
    write_json(json_path, result)


def register(root: typer.Typer) -> None:
    """Add the commands to `root`."""
    root.add_typer(app, name="bench")
