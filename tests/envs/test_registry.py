"""Environments by name, and configuration mistakes in one sentence."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtrl_envs.base import SPLITS, Environment
from mtrl_envs.registry import ENVIRONMENTS, environment_class, make
from mtrl_envs.sales.environment import Sales
from mtrl_ray.errors import ConfigurationError


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_every_name_builds_its_environment(name: str) -> None:
    environment = make(name)
    assert isinstance(environment, Environment)
    assert environment.name == name
    assert sum(environment.warm_start.values()) == pytest.approx(1)


def test_outside_class() -> None:
    assert environment_class("mtrl_envs.sales.environment:Sales") is Sales
    assert isinstance(make("mtrl_envs.sales.environment:Sales", vague=0.0), Sales)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chess", {}, "environment.name is 'chess'; known environments: car_dealer, .*sales.*current folder"),
        (
            "no.such.module:Thing",
            {},
            r"cannot be imported: No module named 'no'; the current folder \(/.*\) and PYTHONPATH",
        ),
        (
            "mtrl_envs.sales.environment:Nothing",
            {},
            r"does not exist.*subclass of mtrl_envs.base.Environment.*defines Sales",
        ),
        ("mtrl_envs.sales.environment:Business", {}, "subclass of mtrl_envs.base.Environment"),
        (":Sales", {}, "environment.name is ':Sales'; known environments"),
        ("sales", {"vage": 0.1}, "'vage'.*its options are: as_is, edited, ignored, vague"),
        ("sales", {"vague": 2}, "vague is 2; it has to be a number from 0 to 1"),
        ("sales", {"as_is": "most"}, "environment 'sales': as_is is 'most': input should be a valid number"),
        ("sales", {"as_is": 0.5}, r"as_is \+ edited \+ ignored is 0.7"),
        ("sales", {"user": "person"}, "user is 'person', use 'scripted' or 'llm'"),
        ("sales", {"user": "llm"}, "llm needs at least base_url and model"),
        ("math_tutoring", {"noise": 1.5}, "math_tutoring: noise is 1.5; it has to be a number from 0 to 1"),
        ("document_writing", {"noise": True}, "noise is True: input should be a valid number"),
        ("medical", {"user": "nurse"}, "medical: user is 'nurse', use 'scripted' or 'llm'"),
        ("car_dealer", {"llm": {"model": "m"}}, "set user to 'llm'"),
        ("car_dealer", {"user": "llm", "llm": {"model": "m"}}, "base_url is missing"),
        ("car_dealer", {"user": "llm", "llm": {"base_url": "http://h", "model": "m", "key": "k"}}, "unknown key 'key'"),
        ("sales", {"user": "llm", "llm": {"base_url": "h:80", "model": "m"}}, "has to start with http"),
        ("sales", {"user": "llm", "llm": {"base_url": "http://h", "model": "m", "timeout": 0}}, "timeout is 0"),
        (
            "sales",
            {"user": "llm", "llm": {"base_url": "http://h", "model": "m", "api_key_env": "MTRL_NO_SUCH_KEY"}},
            "'MTRL_NO_SUCH_KEY' named by api_key_env is not set",
        ),
    ],
)
def test_what_cannot_be_built_is_said_in_one_sentence(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(name, **options)


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_every_option_has_a_type_and_another_is_refused_in_one_sentence(name: str) -> None:
    options = inspect.signature(environment_class(name)).parameters
    for key in options:
        with pytest.raises(ConfigurationError, match=f"{key} is <object object at .*: input should be") as refused:
            make(name, **{key: object()})
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("medical", {"table": 3}, "environment 'medical': table is 3: input should be a valid boolean"),
        ("sales", {"catalogue": "yes"}, "environment 'sales': catalogue is 'yes': input should be a valid boolean"),
        ("medical", {"contexts": 3}, "environment 'medical': contexts is 3: input should be a valid string"),
        ("sales", {"user": "llm", "llm": 3}, "environment 'sales': llm is 3: input should be a valid dictionary"),
        ("sales", {"vague": True}, "vague is True"),
    ],
)
def test_an_option_of_a_wrong_type_is_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(name, **options)


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_contexts_are_pure_and_of_known_splits(name: str) -> None:
    for split in SPLITS:
        assert make(name).context(split, 7) == make(name).context(split, 7)
        assert len({str(make(name).context(split, index).hidden) for index in range(50)}) > 40
    with pytest.raises(ConfigurationError, match="unknown split 'dev', use one of train, test"):
        make(name).context("dev", 0)
    with pytest.raises(ConfigurationError, match="index -1 is negative"):
        make(name).context("train", -1)


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_no_test_task_occurs_in_train(name: str) -> None:
    environment = make(name)
    seen = {split: {repr(environment.context(split, index).hidden) for index in range(2000)} for split in SPLITS}
    assert not seen["train"] & seen["test"]


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_the_system_prompt_is_short_and_tells_nothing_hidden(name: str) -> None:
    for index in range(20):
        context = make(name).context("test", index)
        assert len(context.system.split()) < 40
        assert str(context.hidden.get("personality", "no such word")) not in context.system


MINE = """
from mtrl_envs.base import Context, Environment, Outcome, Reply, User
import {helper}

class Mine(Environment):
    name, max_turns = "mine", 3

    def __init__(self, depth=1):
        self.depth = 6 // depth

    def context(self, split, index):
        return Context(f"{{split}}-{{index}}", split, index, "x", {{"index": index}})

    def user(self, context, seed):
        return User()

    def well_formed(self, response):
        return True

class Half(Mine):
    user = Environment.user

class Shares(Mine):
    warm_start = {{"expert": 0.3, "random": 0.3}}

class Exprt(Mine):
    warm_start = {{"exprt": 1.0}}

class Negative(Mine):
    warm_start = {{"expert": 2.0, "random": -1.0}}

class Nameless(Mine):
    name = None

class Endless(Mine):
    max_turns = 0

class Typed(Mine):
    def __init__(self, words: tuple[str, ...] = None, rate: float = 1, later: "Unknown" = 0):
        self.depth = len(words or ())

class Plain(Mine):
    def __init__(self, words: tuple[str, ...] = None, rate: float = 1):
        self.depth = len(words or ())
"""


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with an environment of somebody's own in its folder `envs`, and a file beside it."""
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "mine.py").write_text(MINE.format(helper="own_helper"))
    (tmp_path / "own_helper.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    for name in ("envs", "envs.mine", "own_helper", "own_torn", "own_faulty"):
        sys.modules.pop(name, None)


def test_a_class_in_the_current_folder_is_found(own_folder: Path) -> None:
    assert make("envs.mine:Mine", depth=2).depth == 3  # type: ignore[attr-defined]
    assert Path(sys.modules["envs.mine"].__file__ or "") == own_folder / "envs" / "mine.py"


@pytest.mark.parametrize("kind", ["Plain", "Typed"])
def test_what_fits_an_annotation_or_has_none_is_taken(own_folder: Path, kind: str) -> None:
    made = make(f"envs.mine:{kind}", words=["a", "b"], rate=2)  # a recipe has lists, and whole numbers
    assert made.depth == 2  # type: ignore[attr-defined]
    make(f"envs.mine:{kind}", words=None)
    if kind == "Plain":
        with pytest.raises(ConfigurationError, match="words is 'ab': input should be a valid"):
            make("envs.mine:Plain", words="ab")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("envs.mine:Half", {}, r"environment 'envs.mine:Half': Half \(.*mine.py:20\) has to define user"),
        ("envs.mine:Mine", {"depth": 0}, r"Mine\(\) raised ZeroDivisionError: .* \(.*mine.py:9, in __init__\)"),
        ("envs.mine:Mine", {"dept": 0}, r"'dept'; its options are: depth"),
        ("envs.mine:Shares", {}, r"the shares of warm_start sum to 0.6; it has to be a dict of shares"),
        ("envs.mine:Exprt", {}, r"warm_start names 'exprt'; .*\(expert, greedy, random\)"),
        ("envs.mine:Negative", {}, r"warm_start is \{'expert': 2.0, 'random': -1.0\}; it has to be"),
        ("envs.mine:Nameless", {}, r"Nameless has to have an attribute name, a text"),
        ("envs.mine:Endless", {}, r"Endless.max_turns is 0; it has to be 1 or more"),
        (
            "envs.other:Mine",
            {},
            r"No module named 'envs.other'; the current folder \(.*\) and PYTHONPATH were searched",
        ),
        ("own_torn:Mine", {}, r"cannot be imported: .* \(.*own_torn.py:1\)"),
        ("own_faulty:Mine", {}, r"cannot be imported: NameError: .* \(.*own_faulty.py:2, in <module>\)"),
        ("own_script:Mine", {}, r"cannot be imported: SystemExit: 2 \(.*own_script.py:2, in <module>\)"),
    ],
)
def test_what_is_wrong_with_an_own_class_is_one_sentence(
    own_folder: Path, name: str, options: dict, message: str
) -> None:
    (own_folder / "own_torn.py").write_text("class Mine(:")
    (own_folder / "own_script.py").write_text("import sys\nsys.exit(2)")
    (own_folder / "own_faulty.py").write_text("\nMine = Yours")
    with pytest.raises(ConfigurationError, match=message) as refused:
        make(name, **options)
    assert "\n" not in str(refused.value)
