"""Algorithms by name; what is wrong with a recipe's `algorithm:` section is one sentence."""

import pytest

import tests.algorithms
from mtrl_ray.algorithms.iterative_ppo import IterativePPO
from mtrl_ray.algorithms.registry import make_algorithm
from mtrl_ray.errors import ConfigurationError


class Outside(IterativePPO):
    """An algorithm of another package, its settings named as it likes."""

    class Named(IterativePPO.settings_class):  # type: ignore[name-defined, misc]
        name: str = "outside"

    settings_class = Named


def test_an_algorithm_is_found_by_name_or_by_class(monkeypatch):
    assert isinstance(make_algorithm({"name": "iterative_ppo"}), IterativePPO)
    monkeypatch.setattr(tests.algorithms, "Outside", Outside, raising=False)
    outside = make_algorithm({"name": "tests.algorithms:Outside", "states": 7})
    assert isinstance(outside, Outside)
    assert outside.settings.states == 7


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"name": "ppo2"}, r"algorithm.name is 'ppo2'; known algorithms: iterative_ppo"),
        ({}, r"algorithm.name is None"),
        ({"name": "no.such.module:Thing"}, r"cannot be imported"),
        ({"name": "collections:OrderedDict"}, r"not a subclass"),
        ({"name": "iterative_ppo", "epochs": 3}, r"algorithm.epochs is not a setting; known keys: .*states"),
        ({"name": "iterative_ppo", "respones": 3}, r"did you mean 'responses'"),
        (
            {"name": "iterative_ppo", "improvement": {"estimator": "sarsa"}},
            r"algorithm.improvement.estimator is 'sarsa'",
        ),
        (
            {"name": "iterative_ppo", "critic": "network", "responses": 1, "improvement": {"estimator": "grpo"}},
            r"a group needs at least 2",
        ),
        ({"name": "iterative_ppo", "responses": 1, "logged": 0}, r"a group needs at least 2"),
        (
            {"name": "iterative_ppo", "q": {"target": "expected"}},
            r"q.target is expected.*use monte_carlo, td_lambda or sarsa",
        ),
        ({"name": "iterative_ppo", "states": 0}, r"algorithm.states is 0"),
    ],
)
def test_what_is_wrong_is_one_sentence(section, sentence):
    with pytest.raises(ConfigurationError, match=sentence) as raised:
        make_algorithm(section)
    assert "\n" not in str(raised.value)
