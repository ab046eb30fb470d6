"""`import mtrl_ray`: quick, typed, lazy; what `train` and `evaluate` refuse before anything starts."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mtrl_ray
from mtrl_envs.registry import GIVEN, make
from mtrl_envs.sales.environment import Sales
from mtrl_ray.run import api
from mtrl_ray.run.folder import prepare
from mtrl_ray.run.recipes import load
from tests.support.letters import Letters

TYPED = """
import mtrl_ray
class Mine(mtrl_ray.Environment): ...
run: mtrl_ray.Run = mtrl_ray.train("sales", {"run.iterations": 2}, environment=Mine)
reveal_type(run.score)
reveal_type(mtrl_ray.evaluate(run, contexts=3).conversations)
mtrl_ray.train(3)
"""


def test_importing_it_is_quick_and_needs_neither_torch_nor_ray() -> None:
    code = "import sys, mtrl_ray; dir(mtrl_ray); print({'torch', 'ray', 'pyarrow', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_every_public_name_is_there_and_seen_by_type_checkers() -> None:
    for name in mtrl_ray.__all__:
        assert getattr(mtrl_ray, name) is not None
    assert set(mtrl_ray.__all__) <= set(dir(mtrl_ray))
    tree = ast.parse(Path(mtrl_ray.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert set(mtrl_ray.__all__) <= {alias.name for node in imports for alias in node.names}
    with pytest.raises(AttributeError, match="no attribute 'trian'; it has Agent, "):
        _ = mtrl_ray.trian


def test_mypy_sees_the_types(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(TYPED)
    root = Path(__file__).parents[1]
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(root / "pyproject.toml"),
        str(tmp_path / "program.py"),
    ]
    said = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True).stdout
    assert (
        'Revealed type is "mtrl_ray.statistics.estimates.Estimate | None"' in said
        or "Union[mtrl_ray.statistics" in said
    )
    assert "list[mtrl_ray.dialogue.conversation.Conversation]" in said
    assert 'Argument 1 to "train" has incompatible type "int"' in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "give a recipe"),
        ({"recipe": "sales", "resume": "runs/sales"}, "give a recipe"),
        ({"resume": "runs/sales", "fresh": True}, "resume continues a run and fresh replaces one"),
        ({"recipe": "sales", "overrides": "run.seed=1"}, "give a list of them, or a dictionary"),
        ({"recipe": "sales", "overrides": {"run.sede": 1}}, "run.sede"),
        ({"recipe": "sales", "run": 3}, "run is 3; it has to be a section"),
        ({"recipe": "sales", "environment": int}, "environment is <class 'int'>; give a name, a subclass"),
    ],
)
def test_what_cannot_be_is_a_sentence(arguments: dict, sentence: str) -> None:
    with pytest.raises(mtrl_ray.ConfigurationError, match=sentence):
        mtrl_ray.train(**arguments)


def test_overrides_are_what_the_command_line_makes_of_them() -> None:
    overrides = {"run.seed": 3, "rollout.workers": {"min": 1, "max": 2}, "algorithm.improvement.learning_rate": 1e-5}
    made = load("sales", api._texts(overrides, {"run": {"name": "1", "folder": Path("/tmp/it's a: folder")}}))
    typed = ["run.seed=3", "rollout.workers={min: 1, max: 2}", "algorithm.improvement.learning_rate=0.00001"]
    assert made == load("sales", [*typed, "run.name='1'", 'run.folder="/tmp/it\'s a: folder"'])
    assert load("sales", api._texts(["run.seed=3"], {})) == load("sales", ["run.seed=3"])


def test_a_class_of_a_module_goes_by_name_and_others_by_value() -> None:
    assert api._shipped(Sales) == ("mtrl_envs.sales.environment:Sales", None)

    class Local(Letters):
        pass

    name, make_known = api._shipped(Local)
    assert name == "given:Local"
    assert type(make(name)) is Local
    GIVEN.clear()
    with pytest.raises(
        mtrl_ray.ConfigurationError, match=r"'given:Local' was a class of the program that started the run"
    ):
        make(name)
    make_known()
    assert type(make(name)) is Local
    assert api._shipped(lambda: Letters())[0] == "given:<lambda>"
    GIVEN.clear()


def test_what_cannot_be_sent_or_is_no_environment_is_a_sentence() -> None:
    lock = sys.stdout  # no file can be sent

    class Holding(Letters):
        held = lock

    with pytest.raises(mtrl_ray.ConfigurationError, match="Holding cannot be sent to the workers"):
        api._shipped(Holding)
    name, _ = api._shipped(lambda: 3)
    with pytest.raises(mtrl_ray.ConfigurationError, match="made 3; it has to make a"):
        make(name)
    GIVEN.clear()


def test_a_folder_that_is_no_run_and_a_model_without_environment_are_refused(tmp_path: Path) -> None:
    with pytest.raises(mtrl_ray.CheckpointError, match="is not a run"):
        mtrl_ray.load(tmp_path)
    with pytest.raises(mtrl_ray.ConfigurationError, match="evaluating a model takes an environment"):
        mtrl_ray.evaluate(tmp_path)
    with pytest.raises(mtrl_ray.ConfigurationError, match="contexts is 0"):
        mtrl_ray.evaluate(tmp_path, "sales", contexts=0)


def test_a_run_that_has_only_begun_is_loaded(tmp_path: Path) -> None:
    settings = load("sales", [f"run.folder={tmp_path}", "run.name=begun"])
    prepare(settings, fresh=False, command="mtrl train sales")
    run = mtrl_ray.load(tmp_path / "begun")
    assert run.settings == settings
    assert run.metrics.num_rows == 0
    assert run.score is None
    assert run.held_out() == []
    with pytest.raises(mtrl_ray.CheckpointError, match="no checkpoint yet"):
        run.policy()
