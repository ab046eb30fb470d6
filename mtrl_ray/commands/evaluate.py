"""`mtrl evaluate`: a run's policy on held-out contexts, beside the scripted agents."""

from pathlib import Path
from typing import Annotated, Any

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
    from mtrl_ray.run.folder import resumed_settings

    settings = resumed_settings(run)
    result = _evaluate(run, settings, contexts or settings.evaluation.contexts, split, checkpoint, address)
    show_estimates(result)
    write_json(json_path, result)


def _evaluate(
    run: Path, settings: Any, contexts: int, split: str, checkpoint: str, address: str | None
) -> dict[str, dict[str, float]]:
    from mtrl_envs.registry import make
    from mtrl_ray.evaluation.holdout import baselines, keep, mean_score
    from mtrl_ray.evaluation.standalone import standalone_rollouts
    from mtrl_ray.processes.session import connected
    from mtrl_ray.run.policy import policy_folder

    model = policy_folder(run, settings, checkpoint)
    environment = make(settings.environment.name, **settings.environment.options)
    environment.context(split, 0)  # says which splits there are, before anything starts
    with connected(settings, address):
        table = standalone_rollouts(settings, model, split, contexts)
    keep(run, f"{split}-{checkpoint}", table)
    estimates = {"policy": mean_score(table)}
    estimates |= baselines(environment, contexts, settings.rollout, split)
    return {name: estimate.as_dict() for name, estimate in estimates.items()}


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(evaluate)
