"""What the driver refuses of an environment's answers, and the sentence it says."""

import math
from typing import Any

import numpy as np
import pytest

from mtrl_envs import measure
from mtrl_envs.base import Context, Environment, Outcome, Reply, User
from mtrl_envs.driver import Driver, make_context
from mtrl_ray.dialogue.conversation import Role, StopReason, Turn
from mtrl_ray.errors import DataError, EngineError

STOP = StopReason.OUTCOME


class Given(User):
    """Answers what it is given; an exception is raised."""

    def __init__(self, opening: Any = "Hello.", replies: Any = (), outcome: Any = None) -> None:
        self._opening, self._replies = opening, list(replies)
        self._outcome = Outcome(0.5) if outcome is None else outcome

    def opening(self) -> Any:
        return _given(self._opening)

    def reply(self, response: str) -> Any:
        return _given(self._replies.pop(0))

    def outcome(self) -> Any:
        return _given(self._outcome)


def _given(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


class Echo:
    """Says what it read last."""

    def respond(self, history: Any) -> Any:
        return history[-1][1]


class Plain(Environment):
    name = "plain"
    max_turns = 4

    def __init__(self, **answers: Any) -> None:
        self._answers = answers

    def context(self, split: str, index: int) -> Any:
        return self._answers.get(
            "context", Context(f"{split}-{index}", split, index, "Say something.", {"index": index})
        )

    def user(self, context: Context, seed: int) -> Any:
        given = {name: value for name, value in self._answers.items() if name in ("opening", "replies", "outcome")}
        return self._answers["user"] if "user" in self._answers else Given(**given)

    def agent(self, name: str, seed: int) -> Any:
        return self._answers.get("agent", Echo())

    def well_formed(self, response: str) -> bool:
        return bool(response)


def rolled_out(**answers: Any) -> Any:
    environment = Plain(**answers)
    return measure.rollout(environment, make_context(environment, "train", 3), "random", seed=0)


ON_FIRST = "environment 'plain', context 'train-3', turn 1: "


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ({"replies": [Reply("x", stop=False)]}, ON_FIRST + "Reply.stop is False; it has to be None to go on, or"),
        ({"replies": [Reply("x", stop="finished")]}, ON_FIRST + "Reply.stop is 'finished'; it has to be None"),
        ({"replies": [Reply("x", stop="outcome")]}, ON_FIRST + "Reply.stop is 'outcome'; it has to be None"),
        ({"replies": [Reply("x", reward=1e39)]}, ON_FIRST + "Reply.reward is 1e+39; it has to be a finite 32-bit"),
        ({"replies": [Reply("x", reward=math.nan)]}, ON_FIRST + "Reply.reward is nan; it has to be a finite"),
        ({"replies": [Reply("x", reward=-math.inf)]}, ON_FIRST + "Reply.reward is -inf; it has to be a finite"),
        ({"replies": [Reply("x", reward=10**400)]}, ON_FIRST + "Reply.reward is 1000"),
        ({"replies": [Reply("x", reward="1")]}, ON_FIRST + "Reply.reward is '1'; it has to be a finite"),
        ({"replies": [Reply(None)]}, ON_FIRST + "the text that reply() gave is None; it has to be a str"),
        ({"replies": [Reply("\ud800")]}, ON_FIRST + "the text that reply() gave is '\\ud800'; UTF-8 cannot"),
        ({"replies": [Reply("x", sent=7)]}, ON_FIRST + "Reply.sent is 7; it has to be a str"),
        ({"replies": ["Yes."]}, ON_FIRST + "reply() gave 'Yes.'; it has to give a Reply, for example Reply('Yes.')"),
        ({"replies": [None]}, ON_FIRST + "reply() gave None; it has to give a Reply"),
        ({"opening": None}, "environment 'plain', context 'train-3', turn 0: opening() gave None; it has to give a"),
        ({"opening": 7}, "turn 0: opening() gave 7; it has to give a text"),
        ({"opening": Reply(7)}, "turn 0: the text that opening() gave is 7; it has to be a str"),
        ({"opening": Reply("x", reward=1.0)}, "turn 0: opening() gave a Reply with `sent` or `reward`"),
        ({"replies": [Reply("x", stop=STOP)], "outcome": Outcome(1.5)}, ON_FIRST + "the outcome's score is 1.5; it"),
        (
            {"replies": [Reply("x", stop=STOP)], "outcome": Outcome(math.nan)},
            "the outcome's score is nan; it has to lie",
        ),
        ({"replies": [Reply("x", stop=STOP)], "outcome": 0.5}, "outcome() gave 0.5; it has to give an Outcome"),
        (
            {"replies": [Reply("x", stop=STOP)], "outcome": Outcome(0.5, {"tone": "kind"})},
            "the metric 'tone' is 'kind'",
        ),
        ({"replies": [Reply("x", stop=STOP)], "outcome": Outcome(0.5, {"t": math.inf})}, "the metric 't' is inf"),
        ({"replies": [Reply("x", stop=STOP)], "outcome": Outcome(0.5, {7: 1.0})}, "the name of a metric is 7"),
        ({"replies": [Reply("x", stop=STOP)], "outcome": Outcome(0.5, [1.0])}, "Outcome.metrics is [1.0]; it has to"),
        ({"user": None}, "turn 0: user() gave None; it has to give an instance of mtrl_envs.base.User"),
        ({"context": None}, "environment 'plain', context 3 of split 'train': context() gave None; it has to give"),
        ({"context": Context("", "train", 3, "x")}, "split 'train': Context.id is ''; it has to be a text"),
        ({"context": Context("a", "test", 3, "x")}, "the Context says split 'test' and index 3; they have to be those"),
        ({"context": Context("a", "train", 3, None)}, "Context.system is None; it has to be a str"),
        ({"context": Context("a", "train", 3, "x", {"a": {1, 2}})}, "Context.hidden has to be a dict of JSON values"),
        ({"agent": Given()}, "agent('random', {seed}) gave "),
    ],
)
def test_a_wrong_answer_is_one_sentence_that_says_where_and_what(answers: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError) as refused:
        rolled_out(**answers)
    seed = measure.stable_seed("plain/train/3/random/0")
    assert sentence.format(seed=seed) in str(refused.value) and "\n" not in str(refused.value)


def test_a_stop_that_is_false_does_not_pass_for_an_end() -> None:
    with pytest.raises(DataError, match=r"turn 1: Reply\.stop is False"):
        rolled_out(replies=[Reply("x", stop=False), Reply("x", stop=False), Reply("x", stop=STOP)])  # type: ignore[arg-type]
    done = rolled_out(replies=[Reply("x"), Reply("x"), Reply("x", stop=STOP)])
    assert (len(done.agent_turns), done.stop) == (3, STOP)
    done = rolled_out(replies=[Reply("x")] * 9)
    assert (len(done.agent_turns), done.stop) == (4, StopReason.TURN_LIMIT)


def test_numbers_of_other_types_become_floats() -> None:
    replies = [Reply("x", reward=np.float32(0.5)), Reply("x", reward=True, stop=STOP)]
    done = rolled_out(replies=replies, outcome=Outcome(np.float64(1), {"n": 3, "sold": True}))
    assert (done.score, done.rewards, done.metrics) == (1.0, [0.5, 1.0], {"n": 3.0, "sold": 1.0})
    numbers = [done.score, *done.rewards, *done.metrics.values()]
    assert {type(number) for number in numbers} == {float}


def test_a_conversation_can_end_in_its_opening() -> None:
    done = rolled_out(opening=Reply("Never mind.", stop=StopReason.USER_LEFT))
    assert [turn.text for turn in done.turns] == ["Say something.", "Never mind."]
    assert (done.stop, done.score, done.agent_turns) == (StopReason.USER_LEFT, 0.5, [])


class Faulty(Given):
    def reply(self, response: str) -> Any:
        return _divided(0)


def _divided(by: int) -> Any:
    return 1 / by  # the line that the message names


def test_an_exception_names_the_file_and_line_of_the_environments_code() -> None:
    line = _divided.__code__.co_firstlineno + 1
    with pytest.raises(DataError) as failed:
        rolled_out(user=Faulty())
    assert str(failed.value) == (
        f"{ON_FIRST}reply() raised ZeroDivisionError: division by zero ({__file__}:{line}, in _divided)"
    )
    with pytest.raises(DataError, match=r"the scripted agent's respond\(\) raised IndexError"):
        rolled_out(agent=type("Lost", (), {"respond": lambda self, history: history[99]})())


def test_the_projects_own_errors_pass_as_they_are() -> None:
    with pytest.raises(EngineError, match=r"^the endpoint does not answer$"):
        rolled_out(replies=[EngineError("the endpoint does not answer")])


def test_a_user_without_one_of_its_methods_is_named() -> None:
    class Mute(User):
        def opening(self) -> str:
            return "Hello."

    class Silent(Plain):
        def user(self, context: Context, seed: int) -> User:
            return Mute()  # type: ignore[abstract]

    with pytest.raises(
        DataError, match=r"user\(\) raised TypeError: Can't instantiate abstract class Mute.*test_driver"
    ):
        Driver(Silent(), make_context(Silent(), "test", 0), 0)


def test_the_agent_reads_what_was_sent_instead() -> None:
    driver = Driver(Plain(), make_context(Plain(), "test", 0), 0)
    driver.add_user_turn(Reply("Hello."))
    driver.add_agent_turn(Turn(Role.AGENT, "Hm."))
    driver.add_user_turn(Reply("Yes.", sent="Buy it."))
    assert [text for _, text in driver.history] == ["Say something.", "Hello.", "Hm.", "(sent: Buy it.) Yes."]
