"""`mtrl chat`: talk to a run's policy, or watch it talk to a simulated user."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Engine = Literal["huggingface", "vllm", "auto"]


def chat(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    watch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Watch N conversations with simulated users instead.")
    ] = None,
    context: Annotated[int, typer.Option(min=0, help="Index of the (first) test context.")] = 0,
    checkpoint: Annotated[str, typer.Option(help="newest, start, or a checkpoint's number.")] = "newest",
    engine: Annotated[Engine, typer.Option(help="huggingface starts fastest.")] = "huggingface",
) -> None:
    """Talk to a run's policy; an empty line ends the conversation."""
    from mtrl_ray.evaluation.talk import PolicyChat
    from mtrl_ray.run.folder import resumed_settings
    from mtrl_ray.run.policy import policy_folder

    settings = resumed_settings(run)
    policy = PolicyChat(settings, policy_folder(run, settings, checkpoint), engine)
    if watch is None:
        done = policy.talk(context, _ask, _say)
        typer.echo(f"the conversation is over ({done.stop})")
        return
    for index in range(context, context + watch):
        typer.secho(f"context {index}", bold=True)
        done = policy.watch(index, _say)
        typer.echo(f"score {done.score:.3f} ({done.stop})\n")


def _say(who: str, text: str) -> None:
    colour = {"agent": typer.colors.GREEN, "user": typer.colors.CYAN}.get(who, typer.colors.BRIGHT_BLACK)
    typer.echo(typer.style(f"{who:>12}  ", fg=colour) + text)


def _ask() -> str:
    try:
        return input("         you  ").strip()
    except EOFError:
        return ""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(chat)
