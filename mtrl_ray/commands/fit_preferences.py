"""`mtrl fit-preferences`: preference and reward models from logged conversations, judged on held-out pairs."""

from typing import Annotated, Any

import typer
import yaml

from mtrl_ray.commands.fit_q import interval, logged, warn
from mtrl_ray.commands.train import JsonOption, number, write_json
from mtrl_ray.errors import ConfigurationError


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
    minibatch_pairs: Annotated[int, typer.Option(help="Pairs per optimiser step.")] = 24,
    learning_rate: Annotated[float, typer.Option(help="Of either model.")] = 5e-4,
    test: Annotated[
        str | None,
        typer.Option(metavar="LOG", help="What is judged: a second journal, or with --pairs a second file of pairs."),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(help="Share of contexts to draw for judging; by default the log's own split, or else 0.2."),
    ] = None,
    context_length: Annotated[int, typer.Option(help="Longest pair, in tokens.")] = 1024,
    cut_long: Annotated[
        bool, typer.Option("--cut-long", help="Keep the ends of longer pairs instead of leaving them out.")
    ] = False,
    vocabulary: Annotated[int, typer.Option(help="Of the tiny model's tokenizer.")] = 768,
    seed: Annotated[int, typer.Option(help="Of the split, the models and the order.")] = 0,
    save: Annotated[str | None, typer.Option(help="Folder for the models, which algorithm.model.folder takes.")] = None,
    json_path: JsonOption = None,
) -> None:
    """Fit a preference model and a Bradley-Terry reward model on pairs and judge them on held-out contexts."""
    from mtrl_ray.evaluation.logged_preferences import KINDS, fit_logged_preferences, pair_parts
    from mtrl_ray.learner.methods.pair_models import PairFit
    from mtrl_ray.learner.methods.sft import SFT
    from mtrl_ray.settings.section import validated
    from mtrl_ray.settings.tree import TINY, ModelSettings

    if save is not None and model == TINY:
        raise ConfigurationError(
            "--save needs --model FOLDER, the model that the run begins with (RUN/model): its tokenizer is theirs"
        )
    tree = {"path": model, "context_length": context_length, "vocabulary": vocabulary}
    settings = validated(ModelSettings, tree, "model")
    wanted = {"epochs": epochs, "minibatch_conversations": minibatch_pairs, "learning_rate": learning_rate}
    spec = validated(PairFit, wanted, "pairs")
    if test is not None and held_out is not None:
        raise ConfigurationError("--test names what is judged and --held-out draws it; give one of them")
    compared, failed = _compared(log, pairs, options)
    judged, failed_too = (
        (None, 0) if test is None else _compared(log if pairs else test, test if pairs else None, options)
    )
    split = pair_parts(compared, judged, held_out, seed)
    typer.echo(f"{len(split.train)} pairs to fit, {len(split.test)} to judge ({split.split.how})")
    if split.split.shared:
        warn(
            f"the pairs of {split.split.shared} conversations are left out of the test: the training part has their contexts"
        )
    if failed + failed_too:
        warn(f"{failed + failed_too} pairs could not be compared and are left out")
    result = fit_logged_preferences(split, settings, spec, SFT(epochs=2), seed, save, warn, cut_long)
    for kind in KINDS:
        for part in ("train", "held_out"):
            found = result[kind][part]
            right = found["accuracy"] or {"mean": None, "low": None, "high": None, "clusters": 0}
            typer.echo(
                f"{kind:>10} model, {part:>8}: accuracy {interval(right)} on {right['clusters']} contexts, calibration error "
                f"{number(found['calibration']['error'])}, cross-entropy {number(found['cross_entropy'])} (of the judge itself "
                f"{number(found['oracle'])}), {found['pairs']} pairs"
            )
    write_json(json_path, result)


def _compared(log: str, pairs: str | None, options: str) -> tuple[Any, int]:
    """Pairs of a journal: those of a file, or else those that the environment's oracle compares; how many it could not."""
    from mtrl_ray.evaluation.logged_preferences import logged_pairs
    from mtrl_ray.feedback.pairs import read_pairs
    from mtrl_ray.replay.journal import Journal

    if pairs is not None:
        return read_pairs(pairs, Journal(log)), 0
    table = logged(log)
    return logged_pairs(table, _oracle(table["environment"].unique().to_pylist(), options))


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
