"""The command line: errors become a sentence and an exit code, and nothing heavy is imported to show the help."""

import os
import shlex
import signal
import subprocess
import sys
import threading

import pytest
import typer

import mtrl_ray
from mtrl_ray import cli
from mtrl_ray.errors import CheckpointError, ConfigurationError, DataError, EngineError
from tests.support.processes import mtrl

HEAVY = ("torch", "ray", "vllm", "transformers", "peft", "matplotlib", "pyarrow")


def end_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """Run `mtrl` with a single command that raises `error`; return the exit code."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "application", lambda: app)
    monkeypatch.setattr(sys, "argv", ["mtrl"])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    return ending.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("run.sed: no such setting; did you mean run.seed?"), 2),
        (DataError("row 3: no text"), 2),
        (CheckpointError("step-4: torn"), 2),
        (EngineError("worker 2 is gone"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_explained_error_is_one_sentence_and_an_exit_code(monkeypatch, capsys, error, code):
    assert end_with(monkeypatch, error) == code
    said = capsys.readouterr().err
    assert said == (f"mtrl: {error}\n" if str(error) else "")


def test_an_error_of_a_ray_actor_shows_its_cause_without_the_remote_traceback(monkeypatch, capsys):
    from ray.exceptions import RayTaskError

    error = RayTaskError("sample", "Traceback\n  File …", EngineError("worker 2 is gone")).as_instanceof_cause()
    assert end_with(monkeypatch, error) == 3
    assert capsys.readouterr().err == "mtrl: worker 2 is gone\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_signal_ends_every_command_with_its_code(monkeypatch, number, code):
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def wait() -> None:
        os.kill(os.getpid(), number)
        threading.Event().wait(10)

    monkeypatch.setattr(cli, "application", lambda: app)
    monkeypatch.setattr(sys, "argv", ["mtrl"])
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ending:
        cli.main()
    assert ending.value.code == code and signal.getsignal(number) is before


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["version"]])
def test_any_encoding_of_the_output_will_do(arguments):
    done = mtrl(*arguments, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout and not done.stderr


def test_a_defect_keeps_its_traceback(monkeypatch):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(lambda: [][0])
    monkeypatch.setattr(cli, "application", lambda: app)
    monkeypatch.setattr(sys, "argv", ["mtrl"])
    with pytest.raises(IndexError):
        cli.main()


def test_the_help_lists_every_command_and_imports_nothing_heavy():
    script = (
        "import sys; from mtrl_ray import cli; sys.argv = ['mtrl', '--help']\n"
        "try: cli.main()\n"
        f"except SystemExit: print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "heavy: []" in done.stdout
    assert all(name.strip("_").replace("_", "-") in done.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_an_example_that_its_options_allow(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    example = next(commands[name] for commands in cli.PANELS.values() if name in commands)
    program, *arguments = shlex.split(example)
    assert program == "mtrl" and arguments[0] == name.strip("_").replace("_", "-")
    group = typer.main.get_command(cli.application())
    command = group.commands[arguments[0]]
    assert command.epilog == f"Example: {example}" and command.rich_help_panel in cli.PANELS
    inner = command.commands[arguments[1]] if hasattr(command, "commands") else command
    inner.make_context("mtrl", arguments[1:] if inner is command else arguments[2:])


def test_a_runs_driver_leaves_torch_to_its_actors():
    heavy = "('torch', 'scipy.stats', 'vllm')"
    script = f"import sys, mtrl_ray.run.trainer; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"


def test_version(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mtrl", "version"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert capsys.readouterr().out == f"{mtrl_ray.__version__}\n"
