"""The command line: `mtrl COMMAND …`.

1. Every command is a module of `mtrl_ray.commands`; `PANELS` names them in the order in which `mtrl --help` shows
   them.
2. An error this project explains becomes its sentence on standard error, without a traceback. Exit codes: 0 done; 1 the
   command's own negative answer; 2 a wrong command line, setting, log or checkpoint; 3 the infrastructure failed and
   the same command may succeed later; 130 interrupted, 143 stopped (SIGTERM). Anything else is a defect, and keeps its
   traceback. A stop signal ends every command this way.
3. An error raised in a Ray actor arrives wrapped, with the remote traceback in its text; what is shown is its cause.
"""

import io
import sys
from importlib import import_module

import typer

from mtrl_ray.errors import EngineError, MtrlError
from mtrl_ray.run.stopping import StopSignal, exit_code

PANELS = {
    "Train": {
        "train": "mtrl train sales run.seed=1 run.minutes=10",
        "evaluate": "mtrl evaluate runs/sales --contexts 512",
        "chat": "mtrl chat runs/sales",
        "check_env": "mtrl check-env mymodule:MyEnvironment",
    },
    "Clusters": {
        "submit": "mtrl submit sales --address http://head:8265 run.folder=/shared/runs",
        "scale": "mtrl scale runs/sales 4",
        "cluster": "mtrl cluster local --nodes 3",
    },
    "Logs of other systems": {
        "import_": "mtrl import log.jsonl runs/log/journal --mapping chat",
        "fit_q": "mtrl fit-q runs/log/journal",
        "fit_preferences": "mtrl fit-preferences runs/log/journal --pairs pairs.jsonl",
    },
    "Compare and measure": {
        "study": "mtrl study itpo --seeds 0,1,2",
        "bench": "mtrl bench learner --quick",
        "chaos": "mtrl chaos sales --minutes 5",
        "theory": "mtrl theory --out runs/theory",
        "credit": "mtrl credit --out runs/credit",
    },
    "This installation": {"doctor": "mtrl doctor --json doctor.json", "version": "mtrl version"},
}
"""By panel of `mtrl --help`: modules of `mtrl_ray.commands`, and an example of each."""
COMMANDS = tuple(name for panel in PANELS.values() for name in panel)
"""In the order of `mtrl --help`."""


def application() -> typer.Typer:
    """Return the typer app with every command registered."""
    app = typer.Typer(
        name="mtrl",
        help="Train conversational LLM policies on what a whole conversation achieves.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for panel, commands in PANELS.items():
        for name, example in commands.items():
            _register(app, name, panel, example)
    return app


def _register(app: typer.Typer, name: str, panel: str, example: str) -> None:
    before = len(app.registered_commands), len(app.registered_groups)
    import_module(f"mtrl_ray.commands.{name}").register(app)
    for command in app.registered_commands[before[0] :]:
        command.rich_help_panel, command.epilog = panel, f"Example: {example}"
    for group in app.registered_groups[before[1] :]:
        group.rich_help_panel, group.epilog = panel, f"Example: {example}"


def main() -> None:
    """Run the command line and leave the process with the exit code of rule 2."""
    _make_printable()
    stop = StopSignal()
    try:
        with stop.listening():
            application()()
    except MtrlError as error:
        typer.secho(f"mtrl: {_sentence(error)}", fg=typer.colors.RED, err=True)
        sys.exit(3 if isinstance(error, EngineError) else 2)
    except KeyboardInterrupt as interrupt:
        sys.exit(exit_code(interrupt))
    except SystemExit:  # typer's own answer to an interrupt is 130, whatever the signal was
        if stop.number is not None:
            sys.exit(128 + stop.number)
        raise


def _make_printable() -> None:
    """Characters that the output's encoding lacks are replaced instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _sentence(error: MtrlError) -> str:
    while isinstance(cause := getattr(error, "cause", None), MtrlError):
        error = cause
    return str(error)
