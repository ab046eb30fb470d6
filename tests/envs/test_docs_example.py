"""The environment in docs/environments.md is runnable as printed, and needs planning."""

import re
from pathlib import Path
from typing import Any

import pytest

from mtrl_envs import measure
from mtrl_envs.base import Environment
from mtrl_ray.dialogue.conversation import validate

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    """What the page's first block defines."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {"__name__": "example", "blocks": blocks}
    exec(compile(blocks[0], str(PAGE), "exec"), names)
    return names


def test_the_example_is_an_environment_that_needs_planning(namespace: dict[str, Any]) -> None:
    environment: Environment = namespace["Booking"]()
    expert, greedy, random = (measure.mean_outcome(environment, agent, 256) for agent in measure.AGENTS)
    assert expert.mean > 0.95
    assert expert.mean > 2 * greedy.mean > random.mean
    for conversation in measure.conversations(environment, measure.MIXTURE, 50):
        validate(conversation)
        assert all(environment.well_formed(conversation.turns[at].text) for at in conversation.agent_turns)


def test_the_measurement_runs_as_printed(namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(namespace["blocks"][1], str(PAGE), "exec"), namespace)
    printed = capsys.readouterr().out
    assert "expert Mean(mean=1.0" in printed
    assert "agent How many people?" in printed


def test_the_measured_tables_are_the_measurements() -> None:
    """The tables of the page: scores on 256 test contexts with seed 0."""
    from mtrl_envs.registry import ENVIRONMENTS, make

    page = PAGE.read_text()
    for name in ENVIRONMENTS:
        section = page.split(f"## `{name}`")[1].split("\n## ")[0]
        for agent in (*measure.AGENTS, measure.MIXTURE):
            measured = measure.mean_outcome(make(name), agent, 256, "test", seed=0)
            row = f"| `{agent}` | {measured.mean:.3f} | {measured.low:.3f} to {measured.high:.3f} |"
            assert row in section, row
