"""Environments by name, and configuration mistakes in one sentence."""

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
        ("chess", {}, "unknown environment 'chess': use one of car_dealer, .*sales"),
        ("no.such.module:Thing", {}, "cannot be imported"),
        ("mtrl_envs.sales.environment:Nothing", {}, "subclass of mtrl_envs.base.Environment"),
        ("mtrl_envs.sales.environment:Business", {}, "subclass of mtrl_envs.base.Environment"),
        (":Sales", {}, "unknown environment"),
        ("sales", {"vage": 0.1}, "'vage'.*its options are: as_is, edited, ignored, vague"),
        ("sales", {"vague": 2}, "vague is 2; it has to be a number from 0 to 1"),
        ("sales", {"as_is": "most"}, "as_is is 'most'"),
        ("sales", {"as_is": 0.5}, r"as_is \+ edited \+ ignored is 0.7"),
        ("sales", {"user": "person"}, "user is 'person', use 'scripted' or 'llm'"),
        ("sales", {"user": "llm"}, "llm needs at least base_url and model"),
        ("math_tutoring", {"noise": 1.5}, "math_tutoring: noise is 1.5; it has to be a number from 0 to 1"),
        ("document_writing", {"noise": True}, "document_writing: noise is True"),
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
