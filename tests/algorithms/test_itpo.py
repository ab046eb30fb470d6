"""Combinations of settings: each impossible one is a sentence that names the key, what was given and what would work."""

from typing import Any

import pytest

from mtrl_ray.algorithms.itpo import ITPO
from mtrl_ray.algorithms.registry import make_algorithm
from mtrl_ray.errors import ConfigurationError

SCHEMES = ["outcome", "environment", "uniform", "value", "judge", "prime", "itpo", "norm_itpo"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("estimator", ["ppo", "grpo", "rloo"])
def test_every_scheme_goes_with_every_estimator(scheme: str, estimator: str):
    made = make_algorithm({"name": "itpo", "rewards": {"scheme": scheme}, "advantages": {"estimator": estimator}})
    assert isinstance(made, ITPO)


LLM = {"source": "llm", "llm": {"base_url": "http://localhost:1", "model": "m"}}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"samples": 1}, "advantages.estimator is rloo and samples is 1; a group needs at least 2"),
    ({"samples": 1, "advantages": {"estimator": "grpo"}}, "advantages.estimator is grpo and samples is 1"),
    ({"advantages": {"estimator": "ppo", "baseline": "pooled"}}, "baseline is pooled and estimator is ppo"),
    (
        {"advantages": {"baseline": "pooled"}, "rewards": {"scheme": "prime"}},
        "rewards.scheme is prime; pooled compares",
    ),
    ({"judge": LLM}, "judge.source is llm and rewards.scheme is norm_itpo; set rewards.scheme to judge"),
    ({"judge": {"source": "llm"}, "rewards": {"scheme": "judge"}}, "source is llm, which needs llm"),
    ({"rewards": {"scheme": "itpo_norm"}}, "rewards.scheme is 'itpo_norm'"),
    ({"improvement": {"kl": {"place": "reward", "kind": "k1"}}}, "kl.place is reward, but the advantages are given"),
    ({"rewards": {"lenght_penalty": 0.1}}, "did you mean 'length_penalty'?"),
]


@pytest.mark.parametrize(("tree", "sentence"), WRONG, ids=[sentence for _, sentence in WRONG])
def test_impossible_settings_are_refused(tree: dict[str, Any], sentence: str):
    with pytest.raises(ConfigurationError) as raised:
        make_algorithm({"name": "itpo"} | tree)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_ppo_needs_no_group():
    assert make_algorithm({"name": "itpo", "samples": 1, "advantages": {"estimator": "ppo"}}).settings.samples == 1
