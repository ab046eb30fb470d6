"""Definitions: what a cell becomes, and the sentence that each mistake gets before anything starts."""

import shlex
from pathlib import Path

import pytest
import yaml

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.run.recipes import apply, load
from mtrl_ray.studies.cells import make_cells, parse_choice, parse_seeds, written
from mtrl_ray.studies.definition import read_definition, study_names

GOOD = {
    "title": "A study",
    "recipe": "sales",
    "seeds": [0, 3],
    "overrides": {"run.minutes": None, "algorithm.window": 2},
    "axes": {
        "reward": {"whole": None, "turn": {"algorithm.q.discount": 0}},
        "noise": {0.0: {}, 0.1: {"environment.options": {"vague": 0.1}, "algorithm.window": 3}},
    },
    "exclude": [{"reward": "turn", "noise": 0.1}],
}


def changed(**parts) -> dict:
    return {**GOOD, **parts}


def read(tmp_path: Path, tree) -> tuple:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False) if not isinstance(tree, str) else tree)
    return read_definition(str(path))


def cells_of(tmp_path: Path, tree, overrides=()):
    name, definition = read(tmp_path, tree)
    return make_cells(name, definition, definition.seeds, Path("runs/mine"), overrides)


def test_cells_are_all_combinations_but_the_excluded_seeds_outermost(tmp_path):
    cells = cells_of(tmp_path, GOOD)
    assert [cell.name for cell in cells] == [
        *("whole-0.0-s0", "whole-0.1-s0", "turn-0.0-s0"),
        *("whole-0.0-s3", "whole-0.1-s3", "turn-0.0-s3"),
    ]
    whole, noisy, turn = (cell.settings for cell in cells[:3])
    assert whole.run.minutes is None and whole.run.seed == 0 and cells[3].settings.run.seed == 3
    assert whole.algorithm["window"] == 2 and noisy.algorithm["window"] == 3, "a value's override wins"
    assert noisy.environment.options == {"vague": 0.1} and turn.algorithm["q"]["discount"] == 0
    assert cells[0].folder == Path("runs/mine/whole-0.0-s0").absolute()


def test_a_cells_command_makes_exactly_its_settings(tmp_path):
    for cell in cells_of(tmp_path, GOOD, ["run.iterations=7"]):
        program, command, recipe, *overrides = shlex.split(cell.command)
        assert (program, command) == ("mtrl", "train")
        assert load(recipe, overrides) == cell.settings and cell.settings.run.iterations == 7


def test_a_text_can_contain_the_seed_and_the_runs_folder(tmp_path):
    trained = "{runs}/first/ppo-s{seed}/model"
    (tmp_path / "second.yaml").write_text(
        yaml.safe_dump({"title": "t", "recipe": "sales", "seeds": [4], "axes": {"a": {"b": {"model.path": trained}}}})
    )
    name, definition = read_definition(str(tmp_path / "second.yaml"))
    (cell,) = make_cells(name, definition, [4], tmp_path / "runs" / "second")
    assert cell.settings.model.path == f"{tmp_path}/runs/first/ppo-s4/model"


def test_an_axis_can_change_the_recipe(tmp_path):
    tree = changed(axes={"task": {"a": {}, "b": {"recipe": "car_dealer"}}}, exclude=[])
    first, second = cells_of(tmp_path, tree)[:2]
    assert (first.settings.environment.name, second.settings.environment.name) == ("sales", "car_dealer")


@pytest.mark.parametrize("value", [None, True, 0, 1e-5, 2.5, "none", "1e5", "a b", "", [1, "x"], {"a": {"b": None}}])
def test_overrides_are_read_back_as_they_were(value):
    tree: dict = {}
    apply(tree, written("one.two", value))
    assert tree == {"one": {"two": value}} and type(tree["one"]["two"]) is type(value)


MISTAKES = [
    (changed(axis={}), "study mine.axis is not a setting; did you mean 'axes'?"),
    (changed(title=""), "study mine.title is ''"),
    (changed(seeds=[0, 0]), "seeds is [0, 0]; list each seed once"),
    (changed(seeds=["x"]), "study mine.seeds.0 is 'x'"),
    (changed(axes={}), "study mine.axes is {}"),
    (changed(axes={"seeds": {"a": {}}}), "'seeds' cannot be the name of an axis"),
    (changed(axes={"reward": {"a b": {}}}), "axes.reward has the value 'a b'"),
    (changed(axes={"reward": {}}), "axes.reward has no values"),
    (changed(axes={"reward": {"a": {"run.seed": 1}}}), "axes.reward.a sets run.seed, which the study sets"),
    (changed(overrides={"algorithm": {}}), "overrides has 'algorithm'; write settings by their path"),
    (changed(exclude=[{"size": ["a"]}]), "exclude: there is no axis 'size'; the study's axes: reward, noise"),
    (changed(baseline={"reward": "none"}), "baseline: the axis 'reward' has no value 'none'; its values: whole, turn"),
    (changed(columns="task"), "columns is 'task', which is not an axis"),
    ("- a", "is a list; it has to be a mapping"),
    ("a: [", "is not YAML"),
]


@pytest.mark.parametrize(("tree", "sentence"), MISTAKES, ids=[sentence for _, sentence in MISTAKES])
def test_a_mistake_in_the_definition_is_a_sentence(tmp_path, tree, sentence):
    with pytest.raises(ConfigurationError) as raised:
        read(tmp_path, tree)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


CELL_MISTAKES = [
    (changed(recipe="sail"), "there is no recipe 'sail'"),
    (changed(recipe=None), "there is no recipe; give"),
    (changed(overrides={"algorithm.windw": 2}), "algorithm.windw is not a setting; did you mean 'window'?"),
    (changed(exclude=[{"reward": ["whole", "turn"]}]), "exclude leaves no cell"),
    (changed(axes={"size": {"a": {}, "b": {"run.checkpoint_every": 5}}}, exclude=[]), "have the same settings"),
]


@pytest.mark.parametrize(("tree", "sentence"), CELL_MISTAKES, ids=[sentence for _, sentence in CELL_MISTAKES])
def test_a_mistake_in_a_cell_is_found_before_anything_starts(tmp_path, tree, sentence):
    with pytest.raises(ConfigurationError) as raised:
        cells_of(tmp_path, tree)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_the_one_wrong_cell_among_many_is_named(tmp_path):
    axes = {"window": {"one": {}, "none": {"algorithm.window": 0}}}
    with pytest.raises(ConfigurationError, match=r"study mine, cell window=none, seed 0: .*\(2 of 4 runs") as raised:
        cells_of(tmp_path, changed(axes=axes, exclude=[]))
    assert "algorithm.window is 0" in str(raised.value)


def test_choices(tmp_path):
    _, definition = read(tmp_path, GOOD)
    chosen = parse_choice(definition, "reward=turn,noise=0.0,noise=0.1")
    assert chosen == {"reward": ["turn"], "noise": ["0.0", "0.1"]}
    assert [cell.name for cell in cells_of(tmp_path, GOOD) if cell.chosen(chosen)] == ["turn-0.0-s0", "turn-0.0-s3"]
    assert parse_choice(definition, "") == {} and parse_seeds("2, 0,2") == [2, 0]
    for wrong, sentence in (
        ("turn", "is not axis=value; write for example reward=whole"),
        ("reward=x", "no value 'x'"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            parse_choice(definition, wrong)
    with pytest.raises(ConfigurationError, match="separated by commas"):
        parse_seeds("0-2")


@pytest.mark.parametrize("study", study_names())
def test_the_studies_that_come_with_the_project_can_run(study, tmp_path):
    name, definition = read_definition(study)
    assert make_cells(name, definition, definition.seeds, tmp_path)


def test_an_unknown_study_is_a_sentence():
    with pytest.raises(ConfigurationError, match=r"there is no study 'salse'; give a YAML file or one of .*sales"):
        read_definition("salse")
