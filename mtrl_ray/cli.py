"""The command line: `mtrl COMMAND …`.

1. Every command is a module of `mtrl_ray.commands`; `COMMANDS` names them in the order in which `mtrl --help` shows
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

COMMANDS = (
    "train",
    "evaluate",
    "chat",
    "submit",
    "check_env",
    "scale",
    "cluster",
    "import_",
    "fit_q",
    "fit_preferences",
    "study",
    "bench",
    "chaos",
    "theory",
    "doctor",
    "version",
)
"""Modules of `mtrl_ray.commands`."""


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
    for name in COMMANDS:
        import_module(f"mtrl_ray.commands.{name}").register(app)
    return app


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
