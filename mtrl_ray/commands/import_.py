"""`mtrl import`: logs of other systems, into a journal."""

from typing import Annotated

import typer

from mtrl_ray.commands.train import JsonOption, write_json


def import_log(
    log: Annotated[str, typer.Argument(metavar="LOG", help="A JSON, JSON lines, Parquet or CSV file.")],
    journal: Annotated[str, typer.Argument(metavar="JOURNAL", help="The journal's folder or URI; made if absent.")],
    mapping: Annotated[str, typer.Option(help="A mapping's name (casino, chat, messages) or YAML file.")] = "chat",
    max_quarantined: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of the conversations beyond which quarantine ends with code 1."),
    ] = 0.1,
    json_path: JsonOption = None,
) -> None:
    """Import logged conversations of another system (docs/importing.md explains mappings).

    Ends with code 1 if too many, or all, are quarantined; the valid ones are imported all the same.
    """
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
    if report.share > max_quarantined or report.share == 1.0:
        typer.secho(
            f"mtrl: {report.quarantined} of {report.conversations} conversations were quarantined, more than "
            f"--max-quarantined {max_quarantined:g} allows; {report.main_cause}",
            fg=typer.colors.RED,
            err=True,
        )
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("import")(import_log)
