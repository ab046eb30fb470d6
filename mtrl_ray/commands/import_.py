"""`mtrl import`: logs of other systems, into a journal."""

from typing import Annotated

import typer

from mtrl_ray.commands.train import JsonOption, write_json


def import_log(
    log: Annotated[str, typer.Argument(metavar="LOG", help="A JSON, JSON lines, Parquet or CSV file.")],
    journal: Annotated[str, typer.Argument(metavar="JOURNAL", help="The journal's folder or URI; made if absent.")],
    mapping: Annotated[str, typer.Option(help="A mapping's name (casino, chat, messages) or YAML file.")] = "chat",
    json_path: JsonOption = None,
) -> None:
    """Import logged conversations of another system (docs/importing.md explains mappings)."""
    from mtrl_ray.replay.importing import import_conversations
    from mtrl_ray.replay.journal import Journal
    from mtrl_ray.replay.mapping import load_mapping

    report = import_conversations(log, load_mapping(mapping), Journal(journal))
    typer.echo(f"{report.records} records: {report.added} conversations added, {report.duplicates} known already")
    for cause, count in report.causes.most_common():
        typer.echo(f"quarantined: {count} x {cause}")
    if report.quarantine is not None:
        typer.echo(f"what was quarantined is in {report.quarantine}")
    write_json(json_path, {**vars(report), "quarantined": report.quarantined, "causes": dict(report.causes)})


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("import")(import_log)
