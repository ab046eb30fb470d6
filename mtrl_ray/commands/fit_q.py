"""`mtrl fit-q`: what a Q-function learns from a log, without touching any policy."""

from typing import Annotated, Any

import typer

from mtrl_ray.commands.train import JsonOption, number, write_json
from mtrl_ray.errors import ConfigurationError, DataError


def fit_q(
    log: Annotated[str, typer.Argument(metavar="LOG", help="A journal's folder or URI (of a run, or of an import).")],
    model: Annotated[str, typer.Option(help="tiny, a Hugging Face folder, or a name of the hub.")] = "tiny",
    target: Annotated[str, typer.Option(help="monte_carlo, sarsa or td_lambda.")] = "monte_carlo",
    discount: Annotated[float, typer.Option(help="Per agent turn.")] = 0.95,
    epochs: Annotated[int, typer.Option(help="Passes over the conversations.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Of Q.")] = 5e-4,
    test: Annotated[str | None, typer.Option(metavar="LOG", help="A second journal, on which Q is judged.")] = None,
    held_out: Annotated[
        float | None,
        typer.Option(help="Share of contexts to draw for judging; by default the log's own split, or else 0.2."),
    ] = None,
    context_length: Annotated[int, typer.Option(help="Longest conversation, in tokens.")] = 1024,
    cut_long: Annotated[
        bool, typer.Option("--cut-long", help="Keep the end of longer conversations instead of leaving them out.")
    ] = False,
    vocabulary: Annotated[int, typer.Option(help="Of the tiny model's tokenizer.")] = 768,
    seed: Annotated[int, typer.Option(help="Of the split, the model and the order.")] = 0,
    json_path: JsonOption = None,
) -> None:
    """Fit a response-level Q on logged conversations and judge it on others."""
    from mtrl_ray.evaluation.logged import parts
    from mtrl_ray.evaluation.logged_q import fit_logged_q
    from mtrl_ray.learner.methods.q import QFit
    from mtrl_ray.learner.methods.sft import SFT
    from mtrl_ray.settings.section import validated
    from mtrl_ray.settings.tree import ModelSettings

    if test is not None and held_out is not None:
        raise ConfigurationError("--test names what is judged and --held-out draws it; give one of them")
    settings = validated(
        ModelSettings, {"path": model, "context_length": context_length, "vocabulary": vocabulary}, "model"
    )
    wanted = validated(
        QFit, {"target": target, "discount": discount, "epochs": epochs, "learning_rate": learning_rate}, "q"
    )
    split = parts(logged(log), None if test is None else logged(test), held_out, seed)
    show_parts(split)
    result = fit_logged_q(split, settings, wanted, SFT(epochs=2), seed, cut_long, warn)
    for part in ("train", "held_out"):
        figures = result[part]
        typer.echo(
            f"{part:>8}: r {interval(figures['r'])}, calibration error {number(figures['calibration_error'])}, explained "
            f"variance {number(figures['explained_variance'])}, {figures['turns']} turns of {figures['r']['clusters']} contexts"
        )
    by_turn = result["held_out"]["by_turn"]
    typer.echo(f"held_out: r {interval(by_turn)} among turns at the same position ({by_turn['n']} turns)")
    write_json(json_path, result)


def logged(log: str) -> Any:
    """The conversations of a journal, by its folder or URI. Raises DataError if there are none."""
    from mtrl_ray.replay.journal import Journal

    table = Journal(log).read()
    if table.num_rows == 0:
        raise DataError(
            f"{log!r} holds no conversations; give the folder that mtrl import or a run wrote its journal to"
        )
    return table


def show_parts(split: Any) -> None:
    """Say what is fitted and what is judged, and what was left out of that."""
    typer.echo(f"{split.train.num_rows} conversations to fit, {split.test.num_rows} to judge ({split.how})")
    if split.shared:
        warn(f"{split.shared} conversations are left out of the test: they are on contexts of the training part")


def warn(sentence: str) -> None:
    """Say something that must not be overlooked."""
    typer.secho(sentence, fg=typer.colors.YELLOW)


def interval(estimate: dict[str, Any]) -> str:
    """`0.382 [0.268, 0.477]`."""
    return f"{number(estimate['mean'])} [{number(estimate['low'])}, {number(estimate['high'])}]"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(fit_q)
