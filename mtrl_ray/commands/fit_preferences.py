"""`mtrl fit-preferences`: preference and reward models from logged conversations, judged on held-out pairs."""

from typing import Annotated, Any

import typer
import yaml

from mtrl_ray.commands.train import JsonOption, number, write_json
from mtrl_ray.errors import ConfigurationError, DataError


def fit_preferences(
    log: Annotated[str, typer.Argument(metavar="LOG", help="A journal's folder or URI (of a run, or of an import).")],
    pairs: Annotated[
        str | None,
        typer.Option(help="A file of pairs that people compared; without it, the environment's oracle compares."),
    ] = None,
    options: Annotated[
        str, typer.Option(help="Options of the environment, as YAML: '{preference_noise: 0.1}'.")
    ] = "{}",
    model: Annotated[str, typer.Option(help="tiny, a Hugging Face folder, or a name of the hub.")] = "tiny",
    epochs: Annotated[int, typer.Option(help="Passes over the pairs.")] = 4,
    minibatches: Annotated[int, typer.Option(help="Steps per pass.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Of either model.")] = 5e-4,
    held_out: Annotated[float, typer.Option(help="Share of contexts kept for judging.")] = 0.2,
    context_length: Annotated[int, typer.Option(help="Longest pair, in tokens.")] = 1024,
    vocabulary: Annotated[int, typer.Option(help="Of the tiny model's tokenizer.")] = 768,
    seed: Annotated[int, typer.Option(help="Of the split, the models and the order.")] = 0,
    save: Annotated[str | None, typer.Option(help="Folder for the models, which algorithm.model.folder takes.")] = None,
    json_path: JsonOption = None,
) -> None:
    """Fit a preference model and a Bradley-Terry reward model on pairs and judge them on held-out contexts."""
    from mtrl_ray.evaluation.logged_preferences import KINDS, fit_logged_preferences, logged_pairs
    from mtrl_ray.feedback.pairs import read_pairs
    from mtrl_ray.learner.methods.pair_models import PairFit
    from mtrl_ray.learner.methods.sft import SFT
    from mtrl_ray.replay.journal import Journal
    from mtrl_ray.settings.section import validated
    from mtrl_ray.settings.tree import TINY, ModelSettings

    if save is not None and model == TINY:
        raise ConfigurationError(
            "--save needs --model FOLDER, the model that the run begins with (RUN/model): its tokenizer is theirs"
        )
    tree = {"path": model, "context_length": context_length, "vocabulary": vocabulary}
    settings = validated(ModelSettings, tree, "model")
    wanted = {"epochs": epochs, "minibatches": minibatches, "learning_rate": learning_rate}
    spec = validated(PairFit, wanted, "pairs")
    journal = Journal(log)
    if pairs is not None:
        compared, failed = read_pairs(pairs, journal), 0
    else:
        table = journal.read()
        if table.num_rows == 0:
            raise DataError(f"{log!r} holds no conversations; give the folder of a run's or an import's journal")
        compared, failed = logged_pairs(table, _oracle(table["environment"].unique().to_pylist(), options))
    result = fit_logged_preferences(compared, settings, spec, held_out, SFT(epochs=2), seed, save)
    for kind in KINDS:
        for part in ("train", "held_out"):
            found = result[kind][part]
            right = found["accuracy"] or {"mean": None, "low": None, "high": None}
            typer.echo(
                f"{kind:>10} model, {part:>8}: accuracy {number(right['mean'])} [{number(right['low'])}, "
                f"{number(right['high'])}], calibration error {number(found['calibration']['error'])}, cross-entropy "
                f"{number(found['cross_entropy'])} (of the judge itself {number(found['oracle'])}), {found['pairs']} pairs"
            )
    if failed:
        typer.echo(f"{failed} pairs could not be compared and were left out")
    if left_out := result["pairs"]["left_out"]:
        typer.echo(f"{left_out} pairs are longer than --context-length {context_length} and were left out")
    write_json(json_path, result)


def _oracle(names: list[str], options: str) -> Any:
    """The oracle of the log's only environment. Raises ConfigurationError."""
    from mtrl_envs.preferences import require_oracle
    from mtrl_envs.registry import make
    from mtrl_ray.run.recipes import place_of

    if len(names) != 1:
        raise ConfigurationError(
            f"the log has conversations of {', '.join(sorted(names))}; an oracle compares one kind"
        )
    try:
        given = yaml.safe_load(options)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"--options is not YAML{place_of(error)}") from None
    if not isinstance(given, dict):
        raise ConfigurationError(
            f"--options is {options!r}; it has to be a mapping such as '{{preference_noise: 0.1}}'"
        )
    return require_oracle(make(names[0], **given))


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(fit_preferences)
