"""The command line: `mtrl COMMAND …`.

1. Every command is a module of `mtrl_ray.commands`; `COMMANDS` names them in the order in which `mtrl --help` shows
   them.
2. An error this project explains becomes its sentence on standard error, without a traceback. Exit codes: 0 done; 1 the
   command's own negative answer; 2 a wrong command line, setting, log or checkpoint; 3 the infrastructure failed and
   the same command may succeed later; 130 interrupted, 143 stopped (SIGTERM). Anything else is a defect, and keeps its
   traceback.
3. An error raised in a Ray actor arrives wrapped, with the remote traceback in its text; what is shown is its cause.
"""

import sys
from importlib import import_module

import typer

from mtrl_ray.errors import EngineError, MtrlError

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
    try:
        application()()
    except MtrlError as error:
        typer.secho(f"mtrl: {_sentence(error)}", fg=typer.colors.RED, err=True)
        sys.exit(3 if isinstance(error, EngineError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)


def _sentence(error: MtrlError) -> str:
    while isinstance(cause := getattr(error, "cause", None), MtrlError):
        error = cause
    return str(error)
