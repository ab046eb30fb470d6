"""`mtrl check-env`: whether an environment keeps its promises, before a run pays for finding out."""

from typing import TYPE_CHECKING, Annotated

import typer

from mtrl_ray.commands.train import JsonOption, write_json

if TYPE_CHECKING:
    from mtrl_envs.check import Finding
    from mtrl_ray.dialogue.conversation import Conversation

COLOURS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "failed": typer.colors.RED}


def check_env(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="An environment's name, or package.module:ClassName (current folder too)."),
    ],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[OPTION=VALUE]...", help="The environment's options, in YAML.")
    ] = None,
    contexts: Annotated[int, typer.Option(min=1, help="Contexts of each split.")] = 2000,
    conversations: Annotated[int, typer.Option(min=1, help="Conversations of each scripted agent.")] = 200,
    response_tokens: Annotated[
        int | None, typer.Option(min=1, help="As rollout.response_tokens; by default that setting's default.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Count tokens with this model's tokenizer; by default as the tiny model's.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Longest time for all of it.")] = 600.0,
    json_path: JsonOption = None,
) -> None:
    """Check an environment: contexts, conversations, seeds, hostile text, lengths. Exits with 2 if something failed."""
    from mtrl_envs.check import check
    from mtrl_envs.registry import make
    from mtrl_ray.run.recipes import apply

    tree: dict[str, object] = {}
    for option in options or []:
        apply(tree, option)
    checked = check(make(name, **tree), contexts, conversations, seconds)
    spoken = [talk for talks in checked.conversations.values() for talk in talks]
    findings = checked.findings + _lengths(spoken, response_tokens, model)
    for finding in findings:
        state = typer.style(f"{finding.state:>7}", fg=COLOURS[finding.state])
        typer.echo(f"{state}  {finding.what:<16}  {finding.said}")
    write_json(json_path, [vars(finding) for finding in findings])
    if any(finding.state == "failed" for finding in findings):
        raise typer.Exit(2)


def _lengths(spoken: "list[Conversation]", response_tokens: int | None, model: str | None) -> "list[Finding]":
    if not spoken:
        return []
    from mtrl_envs.check import check_lengths
    from mtrl_ray.run.preflight import tiny_counter
    from mtrl_ray.settings.tree import ModelSettings, RolloutSettings

    if model is None:
        counter = tiny_counter(spoken, ModelSettings().vocabulary)
    else:
        from mtrl_ray.dialogue.chat import chat_format

        chat = chat_format(model)

        def counter(text: str) -> int:
            return len(chat.encode_agent(text))

    return [check_lengths(spoken, counter, response_tokens or RolloutSettings().response_tokens)[0]]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("check-env")(check_env)
