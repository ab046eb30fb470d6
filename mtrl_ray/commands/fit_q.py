"""`mtrl fit-q`: what a Q-function learns from a log, without touching any policy."""

from typing import Annotated

import typer

from mtrl_ray.commands.train import JsonOption, number, write_json
from mtrl_ray.errors import DataError


def fit_q(
    log: Annotated[str, typer.Argument(metavar="LOG", help="A journal's folder or URI (of a run, or of an import).")],
    model: Annotated[str, typer.Option(help="tiny, a Hugging Face folder, or a name of the hub.")] = "tiny",
    target: Annotated[str, typer.Option(help="monte_carlo, sarsa or td_lambda.")] = "monte_carlo",
    discount: Annotated[float, typer.Option(help="Per agent turn.")] = 0.95,
    epochs: Annotated[int, typer.Option(help="Passes over the conversations.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Of Q.")] = 5e-4,
    held_out: Annotated[float, typer.Option(help="Share of contexts kept for judging.")] = 0.2,
    context_length: Annotated[int, typer.Option(help="Longest conversation, in tokens.")] = 1024,
    vocabulary: Annotated[int, typer.Option(help="Of the tiny model's tokenizer.")] = 768,
    seed: Annotated[int, typer.Option(help="Of the split, the model and the order.")] = 0,
    json_path: JsonOption = None,
) -> None:
    """Fit a response-level Q on logged conversations and judge it on held-out ones."""
    from mtrl_ray.evaluation.logged_q import fit_logged_q
    from mtrl_ray.learner.methods.q import QFit
    from mtrl_ray.learner.methods.sft import SFT
    from mtrl_ray.replay.journal import Journal
    from mtrl_ray.settings.section import validated
    from mtrl_ray.settings.tree import ModelSettings

    settings = validated(
        ModelSettings, {"path": model, "context_length": context_length, "vocabulary": vocabulary}, "model"
    )
    wanted = {"target": target, "discount": discount, "epochs": epochs, "learning_rate": learning_rate}
    table = Journal(log).read()
    if table.num_rows == 0:
        raise DataError(
            f"{log!r} holds no conversations; give the folder that mtrl import or a run wrote its journal to"
        )
    result = fit_logged_q(table, settings, validated(QFit, wanted, "q"), held_out, SFT(epochs=2), seed)
    for part in ("train", "held_out"):
        figures = result[part]
        r = figures["r"]
        typer.echo(
            f"{part:>8}: r {number(r['mean'])} [{number(r['low'])}, {number(r['high'])}], calibration error "
            f"{number(figures['calibration_error'])}, explained variance {number(figures['explained_variance'])}, "
            f"{figures['turns']} turns"
        )
    by_turn = result["held_out"]["by_turn"]
    typer.echo(f"held_out: r {number(by_turn['r'])} among turns at the same position ({by_turn['pairs']} turns)")
    if left_out := result["conversations"]["left_out"]:
        typer.echo(f"{left_out} conversations are longer than --context-length {context_length} and were left out")
    write_json(json_path, result)


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(fit_q)
