"""Settings: recipes, overrides, and mistakes told in one sentence before anything starts."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
import yaml

import mtrl_envs
import mtrl_ray
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.run.recipes import dump, load, recipe_names, validate
from mtrl_ray.settings.section import Section


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_survives_being_written(name):
    settings = load(name)
    assert validate(yaml.safe_load(dump(settings)), "copy") == settings


def test_overrides_reach_every_depth():
    settings = load(
        "sales", ["run.seed=7", "algorithm.q.discount=0.5", "environment.options={vague: 0.0}", "run.minutes=2.5"]
    )
    assert settings.run.seed == 7
    assert settings.algorithm["q"]["discount"] == 0.5
    assert settings.environment.options == {"vague": 0.0}
    assert settings.run.minutes == 2.5


@pytest.mark.parametrize(
    ("given", "bounds"),
    [("3", (3, 3)), ("{min: 2, max: 5}", (2, 5)), ("{max: 4}", (1, 4)), ("{min: 1, max: 1}", (1, 1))],
)
def test_workers_are_a_number_or_a_range(given, bounds):
    settings = load("sales", [f"rollout.workers={given}"])
    assert settings.rollout.bounds == bounds
    assert validate(yaml.safe_load(dump(settings)), "copy") == settings


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rollout.wrokers=2", r"rollout.wrokers is not a setting; did you mean 'workers'\?"),
        ("rolout.workers=2", r"rolout is not a setting; did you mean 'rollout'\?"),
        ("rollout.workers=many", r"rollout.workers is 'many': .*integer"),
        ("rollout.workers=0", r"rollout.workers is 0: .*greater than or equal to 1"),
        (
            "rollout.workers={min: 3, max: 1}",
            r"rollout.workers is .*: min is 3 and max is 1; max has to be at least min",
        ),
        ("rollout.workers={min: 0, max: 1}", r"rollout.workers.min is 0: .*greater than or equal to 1"),
        ("rollout.workers={min: 1}", r"rollout.workers.max is missing"),
        ("rollout.workers={max: 2, mix: 1}", r"rollout.workers.mix is not a setting; did you mean '(min|max)'\?"),
        ("rollout.workers=[1, 3]", r"rollout.workers is \[1, 3\]: .*integer"),
        ("rollout.workers", r"'rollout.workers' is not an override; write key.path=value"),
        ("=3", r"'…' is not an override"),
        ("run.name=../up", r"run.name is '../up'"),
        ("run.name.first=x", r"'name' is a value, not a section"),
        ("run=[1", r"is not YAML"),
        (
            "model.warm_start.shares={expert: 0}",
            r"model.warm_start.shares is \{'expert': 0\}: one of the shares has to be above 0",
        ),
        ("model.warm_start.shares={}", r"one of the shares has to be above 0"),
        (
            "model.warm_start.shares={teacher: 1}",
            r"shares.teacher is 'teacher': input should be 'expert', 'greedy' or",
        ),
        ("rollout.response_tokens=2000", r"a response has to be shorter than the context"),
        ("environment.name=sails", r"sails"),
        ("environment.options={nonsense: 1}", r"nonsense"),
        ("algorithm.name=ppo", r"algorithm.name is 'ppo'; known algorithms"),
        ("algorithm.q.discount=1.5", r"algorithm.q.discount is 1.5"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(override, sentence):
    with pytest.raises(ConfigurationError, match=sentence) as raised:
        load("sales", [override])
    assert "\n" not in str(raised.value)


def test_recipes_that_are_none(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"no recipe 'sails'; give a YAML file or one of .*sales"):
        load("sails")
    for text, sentence in (("- a\n- b", "holds list"), ("a: [", "is not YAML")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigurationError, match=sentence):
            load(str(tmp_path / "bad.yaml"))


def test_the_settings_stay_few():
    """Of all sections, studies' definitions aside.

    Beyond 150: what a run measures of its own learning (`algorithm.ranking`), comparisons at equal KL and equal rewards,
    REFUEL, and which Q and which responses Iterative PPO learns from.
    """
    for package in (mtrl_ray, mtrl_envs):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    sections, found = [Section], {}
    while sections:
        section = sections.pop()
        sections += section.__subclasses__()
        if not section.__module__.startswith(("tests", "mtrl_ray.studies")):
            own = inspect.get_annotations(section)
            found[section.__qualname__] = [name for name in own if name in section.model_fields]
    assert len(found["RolloutSettings"]) > 10
    assert sum(map(len, found.values())) <= 159, found
