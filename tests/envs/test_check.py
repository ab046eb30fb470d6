"""What `check` finds in environments that break a promise, and the look that a run takes before it starts."""

import itertools
import random
import re
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from mtrl_envs import measure
from mtrl_envs.base import Context, Environment, Outcome, Probe, Reply, User
from mtrl_envs.check import ONLINE, check
from mtrl_envs.registry import ENVIRONMENTS, make
from mtrl_envs.sales.environment import Sales
from mtrl_ray.cli import application
from mtrl_ray.dialogue.conversation import StopReason
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.run.preflight import check_agents, preflight
from mtrl_ray.run.recipes import load
from mtrl_ray.run.tiny_model import probes

COUNTER = itertools.count()


def failed(environment: Environment, **options: Any) -> dict[str, str]:
    """What `check` says of everything that is not as it should be."""
    checked = check(environment, contexts=40, conversations=6, **options)
    return {finding.what: finding.said for finding in checked.findings if finding.state != "ok"}


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_the_projects_environments_pass(name: str) -> None:
    assert failed(make(name)) == {}


class SameIds(Sales):
    def context(self, split: str, index: int) -> Context:
        return replace(super().context(split, index), id=f"{split}-{index % 30}")


class OneSplit(Sales):
    def context(self, split: str, index: int) -> Context:
        return replace(super().context("train", index), id=f"{split}-{index}", split=split)


class Impure(Sales):
    def context(self, split: str, index: int) -> Context:
        return replace(super().context(split, index), system=f"Sell. {next(COUNTER)}")


class Fragile(User):
    """Raises for text without a letter."""

    blocking = False

    def opening(self) -> str:
        return "Hi."

    def reply(self, response: str) -> Reply:
        return Reply(f"{response.split()[0]}?", stop=StopReason.OUTCOME)

    def outcome(self) -> Outcome:
        return Outcome(0.5)


class Moody(Fragile):
    """Draws from everybody's generator."""

    def reply(self, response: str) -> Reply:
        return Reply(f"{random.random()}", stop=StopReason.OUTCOME)


class Hanging(Fragile):
    def reply(self, response: str) -> Reply:
        time.sleep(600)
        return Reply("")


class Quitting(Fragile):
    """Ends the process, as code that was a script does."""

    def reply(self, response: str) -> Reply:
        sys.exit(3)


class Interrupting(Fragile):
    def reply(self, response: str) -> Reply:
        raise KeyboardInterrupt


class Waiting(Fragile):
    """As if behind a network."""

    blocking = True
    asked = 0

    def reply(self, response: str) -> Reply:
        type(self).asked += 1
        return super().reply(response)


class With(Sales):
    """`sales` with another user."""

    def __init__(self, user: type[User]) -> None:
        super().__init__()
        self._other = user

    def user(self, context: Context, seed: int) -> User:
        return self._other()


class Bare(With):
    """The same without scripted agents."""

    warm_start = {}  # noqa: RUF012

    def agent(self, name: str, seed: int) -> Any:
        raise KeyError(name)


class Abstract(Fragile):
    """Lacks an outcome."""

    outcome = User.outcome


class Leaving(Fragile):
    """Is gone before the agent says a word."""

    def opening(self) -> Reply:
        return Reply("Never mind.", stop=StopReason.USER_LEFT)


class Unscored(Fragile):
    """Rewards a turn, and scores nothing."""

    def reply(self, response: str) -> Reply:
        return Reply("Good.", reward=0.5, stop=StopReason.OUTCOME)

    def outcome(self) -> Outcome:
        return Outcome(0.0)


@pytest.mark.parametrize(
    ("environment", "what", "said"),
    [
        (With(Unscored), "scores", "turns have rewards, but all 18 conversations have score 0"),
        (With(Abstract), "agents", "context() or user() raised TypeError: Can't instantiate abstract class Abstract"),
        (SameIds(), "contexts", "contexts 0 and 30 have the same id 'train-0'; conversations are grouped by it"),
        (OneSplit(), "contexts", "split 'test': context 0 is a context of split 'train' as well"),
        (Impure(), "contexts", "split 'train': context 0 was another when asked for twice"),
        (
            With(Fragile),
            "hostile text",
            "context 'train-0', turn 1: reply() raised IndexError: list index out of range",
        ),
        (With(Moody), "seeds, expert", "had another conversation with the same seed: "),
        (Bare(Fragile), "agents", "model.path has to be a pretrained model"),
    ],
)
def test_a_broken_promise_is_named(environment: Environment, what: str, said: str) -> None:
    assert said in failed(environment)[what]


def test_what_was_not_looked_at_is_neither_praised_nor_blamed() -> None:
    class Broken(Fragile):
        def reply(self, response: str) -> Reply:
            raise ValueError("no such product")

    found = {finding.what for finding in check(With(Broken), 10, 6).findings}
    assert "agent expert" in found and not any(what.startswith("seeds") for what in found)


def test_users_that_let_nobody_speak_are_said() -> None:
    assert "none of 6 conversations has a turn of the agent" in failed(With(Leaving))["agent expert"]


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        (lambda history: history[99], "probe() raised IndexError: list index out of range ("),
        (lambda history: ("yes", "no"), "probe() gave ('yes', 'no'); it has to give an mtrl_envs.base.Probe, or None"),
        (lambda history: Probe("yes", None), "Probe.wrong is None; it has to be a str"),
    ],
)
def test_a_probe_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, probe: Any, said: str) -> None:
    environment = make("sales")
    monkeypatch.setattr(environment, "probe", probe)
    assert said in failed(environment)["agent expert"]
    with pytest.raises(DataError, match=re.escape(said)):
        probes(environment, list(measure.conversations(environment, "expert", 2)))


def test_a_user_that_never_answers_is_said() -> None:
    said = failed(With(Hanging), seconds=0.5)["time"]
    assert said.startswith("conversations of the agent 'expert' did not come to an end within 0.5 s")


def test_a_check_that_ends_early_is_no_check_that_passed() -> None:
    assert "turn 1: reply() raised SystemExit: 3 (" in failed(With(Quitting))["agent expert"]
    with pytest.raises(KeyboardInterrupt):
        failed(With(Interrupting))


def test_a_user_behind_a_network_is_asked_little_or_nothing() -> None:
    Waiting.asked = 0
    assert check(With(Waiting), 10, 6, paid=False).conversations == {} and Waiting.asked == 0
    assert len(check(With(Waiting), 10, 6).conversations["expert"]) == ONLINE == Waiting.asked


NAME = "environment.name=tests.envs.test_check:"


def test_scripted_agents_are_optional_with_a_pretrained_model_alone() -> None:
    bare = Bare(Fragile)
    settings = load("sales")
    with pytest.raises(ConfigurationError, match=r"model.path is 'tiny'.*has no warm_start; name agents"):
        check_agents(settings, bare)
    given = load("sales", ["model.warm_start.shares={greedy: 1}"])
    with pytest.raises(
        ConfigurationError, match=r"has no scripted agent 'greedy' \(it has: none\); name agents that it has"
    ):
        check_agents(given, bare)
    check_agents(load("sales", ["model.path=/models/some"]), bare)


def test_a_run_is_refused_before_it_starts() -> None:
    with pytest.raises(
        ConfigurationError, match=r"have the same id .*mtrl check-env tests\.envs\.test_check:SameIds shows"
    ):
        preflight(load("sales", [f"{NAME}SameIds"]), pytest.fail)
    options = ["environment.name=tests.support.letters:Letters", "environment.options={trouble: data}"]
    said: list[str] = []
    preflight(load("sales", options), said.append)
    assert any("11 of 32 conversations failed; the first: the reader's file is torn" in one for one in said)
    with pytest.raises(ConfigurationError, match="11 of 32 conversations failed"):
        preflight(load("sales", [*options, "rollout.data_errors=0.1"]), said.append)


def test_scripted_turns_that_are_longer_than_a_response_are_said_before_the_run() -> None:
    said: list[str] = []
    preflight(load("sales", ["rollout.response_tokens=9"]), said.append)
    assert len(said) == 1 and "are longer than rollout.response_tokens=9 tokens, the longest" in said[0]
    with pytest.raises(ConfigurationError, match=r"the policy cannot say them: set rollout.response_tokens=\d+"):
        preflight(load("sales", ["rollout.response_tokens=3"]), said.append)
    preflight(load("sales"), pytest.fail)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["sales", "vague=0.3"], 0, "agent expert"),
        (["tests.envs.test_check:SameIds"], 2, "failed  contexts"),
        (["sales", "--response-tokens", "5"], 0, "longer than rollout.response_tokens=5"),
    ],
)
def test_check_env_prints_a_line_per_check(arguments: list[str], code: int, said: str) -> None:
    done = CliRunner().invoke(application(), ["check-env", *arguments, "--contexts", "40", "--conversations", "20"])
    assert (done.exit_code, said in done.output) == (code, True), done.output
