"""`mtrl evaluate`: a run's policy on held-out contexts, compared with the scripted agents."""

from pathlib import Path
from typing import Annotated

import typer

from mtrl_ray.commands.train import JsonOption, show_estimates, write_json


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    contexts: Annotated[
        int | None, typer.Option(min=1, help="How many contexts; by default the run's own setting.")
    ] = None,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="newest, start, or a checkpoint's number.")] = "newest",
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; by default a new one here.")] = None,
    json_path: JsonOption = None,
) -> None:
    """Evaluate a run's policy on held-out contexts."""
    from mtrl_ray.evaluation.holdout import keep
    from mtrl_ray.monitoring.heartbeat import phase
    from mtrl_ray.run.evaluating import evaluate_model
    from mtrl_ray.run.folder import resumed_settings
    from mtrl_ray.run.policy import policy_folder

    settings = resumed_settings(run)
    model = policy_folder(run, settings, checkpoint)
    count = contexts or settings.evaluation.contexts
    with phase(f"evaluating on {count} contexts", lambda line: typer.echo(line, err=True)):
        found = evaluate_model(settings, model, split, count, address)
    keep(run, f"{split}-{checkpoint}", found.table)
    result = {name: estimate.as_dict() for name, estimate in found.scores.items()}
    show_estimates(result)
    write_json(json_path, result)


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(evaluate)
