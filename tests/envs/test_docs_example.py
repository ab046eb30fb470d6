"""The environments in docs/environments.md are runnable as printed: a short one, and one with scripted agents."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mtrl_envs import measure
from mtrl_envs.base import Environment
from mtrl_ray.cli import application
from mtrl_ray.dialogue.conversation import validate

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    """What the page's second block defines."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {"__name__": "example", "blocks": blocks}
    exec(compile(blocks[1], str(PAGE), "exec"), names)
    return names


def test_the_short_example_passes_its_check(
    namespace: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = namespace["blocks"][0]
    assert len(source.splitlines()) < 60
    (tmp_path / "higher.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    done = CliRunner().invoke(application(), ["check-env", "higher:Higher", "--contexts", "50", "--conversations", "9"])
    sys.modules.pop("higher", None)
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.output.splitlines()] == ["ok", "warning", "ok", "ok"], done.output


def test_the_example_is_an_environment_that_needs_planning(namespace: dict[str, Any]) -> None:
    environment: Environment = namespace["Booking"]()
    expert, greedy, random = (measure.mean_outcome(environment, agent, 256) for agent in measure.AGENTS)
    assert expert.mean > 0.95
    assert expert.mean > 2 * greedy.mean > random.mean
    for conversation in measure.conversations(environment, measure.MIXTURE, 50):
        validate(conversation)
        assert all(environment.well_formed(conversation.turns[at].text) for at in conversation.agent_turns)


def test_the_measurement_runs_as_printed(namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(namespace["blocks"][2], str(PAGE), "exec"), namespace)
    printed = capsys.readouterr().out
    assert "expert Estimate(mean=1.0" in printed
    assert "agent How many people?" in printed


def test_the_measured_tables_are_the_measurements() -> None:
    """The tables of the page: scores, turns and words on 256 test contexts with seed 0."""
    from mtrl_envs.registry import ENVIRONMENTS, make

    page = PAGE.read_text()
    for name in ENVIRONMENTS:
        section = page.split(f"## `{name}`")[1].split("\n## ")[0]
        for agent in (*measure.AGENTS, measure.MIXTURE):
            held = list(measure.conversations(make(name), agent, 256, "test", seed=0))
            score = measure.mean_score(held)
            turns = sum(len(one.agent_turns) for one in held) / len(held)
            words = sum(len(f"{turn.text} {turn.sent or ''}".split()) for one in held for turn in one.turns) / len(held)
            row = f"| `{agent}` | {score.mean:.3f} | {score.low:.3f} to {score.high:.3f} | {turns:.1f} | {words:.0f} |"
            assert row in section, row


def test_lessons_of_the_papers_length_have_the_scores_of_the_page() -> None:
    from mtrl_envs.registry import make

    lessons = make("education", shortest=10, longest=15)
    expert, greedy = (measure.mean_outcome(lessons, agent, 256).mean for agent in ("expert", "greedy"))
    assert f"With the paper's length `expert` has {expert:.3f} and `greedy` {greedy:.3f}." in PAGE.read_text()


def test_the_win_rates_are_the_measurements() -> None:
    """The table of win rates on 256 test contexts with seed 0, and the rates with flipped pairs."""
    from mtrl_envs.registry import make
    from mtrl_envs.win_rates import scripted_win_rate

    page = PAGE.read_text()
    for name in ("education", "car_dealer"):
        for pair in (("expert", "greedy"), ("expert", "random"), ("greedy", "random")):
            rate = scripted_win_rate(make(name), *pair, 256)
            row = f"| `{name}` | `{pair[0]}` | `{pair[1]}` | {rate.mean:.3f} | {rate.low:.3f} to {rate.high:.3f} |"
            assert row in page, row
    options = [{"preference_noise": noise, "preference_noise_kind": "flipped"} for noise in (0.1, 0.2, 0.3)]
    flipped = [scripted_win_rate(make("education", **one), "expert", "greedy", 256).mean for one in options]
    assert f"`expert` beats `greedy` on `education` in {flipped[0]:.3f}, {flipped[1]:.3f} and {flipped[2]:.3f}" in page
