"""Scripted agents meet users behind a network: some do not answer at once, some talk nonsense."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mtrl_envs.base import Environment
from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, to_table
from mtrl_ray.errors import DataError, EngineError
from mtrl_ray.evaluation.holdout import scripted, well_formed
from mtrl_ray.run.recipes import load
from tests.support.endpoint import Endpoint
from tests.support.letters import Letters

CONTEXTS = 6
LEAVES, NONSENSE = "Bye. [END: left]", "I take it! [END: bought a unicorn]"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint()
    yield served
    served.close()


@pytest.fixture
def environment(endpoint: Endpoint) -> Environment:
    llm = {"base_url": endpoint.url, "model": "person", "retries": 0, "timeout": 5}
    return make("sales", user="llm", llm=llm, as_is=1.0, edited=0.0, ignored=0.0)


def settings(**changes: Any):
    return load("sales").rollout.model_copy(update=changes)


def test_a_conversation_is_held_again_when_its_user_does_not_answer(endpoint, environment):
    failed, lock = set(), threading.Lock()

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        with lock:
            if body["seed"] not in failed:
                failed.add(body["seed"])
                return 503, {}
        return 200, LEAVES if len(body["messages"]) > 2 else "Hello."

    endpoint.answer = answer
    assert scripted(environment, "greedy", CONTEXTS, settings(retries=1)).n == CONTEXTS == len(failed)
    failed.clear()
    with pytest.raises(EngineError, match="HTTP status 503"):
        scripted(environment, "greedy", CONTEXTS, settings(retries=0))


def test_users_behind_a_network_are_waited_for_side_by_side(endpoint, environment):
    together = threading.Barrier(CONTEXTS)  # nobody is answered before everybody has asked

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        together.wait(timeout=60)
        return 200, LEAVES if len(body["messages"]) > 2 else "Hello."

    endpoint.answer = answer
    assert scripted(environment, "greedy", CONTEXTS, settings(concurrency=CONTEXTS)).n == CONTEXTS


def test_nonsense_is_left_out_until_there_is_too_much_of_it(endpoint, environment):
    seeds: list[int] = []

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if body["seed"] not in seeds:
            seeds.append(body["seed"])
        said = NONSENSE if seeds.index(body["seed"]) % 3 == 0 else LEAVES
        return 200, said if len(body["messages"]) > 2 else "Hello."

    endpoint.answer = answer
    assert scripted(environment, "greedy", CONTEXTS, settings(concurrency=1, data_errors=0.4)).n == 4
    with pytest.raises(DataError, match=r"2 of 6 conversations of the agent 'greedy' failed .*unicorn"):
        scripted(environment, "greedy", CONTEXTS, settings(concurrency=1, data_errors=0.3))


class Divider(Letters):
    """Its user raises on every third context, with whatever comes to it."""

    def user(self, context, seed):
        if context.split == "test" and context.index % 3 == 0:
            raise ValueError("division by nothing")
        return super().user(context, seed)


def test_a_user_that_raises_is_counted_named_and_left_out(caplog):
    allowed = settings(data_errors=0.4, retries=1)
    assert scripted(Divider(), "expert", CONTEXTS, allowed).n == 4
    assert "2 of 6 conversations of the agent 'expert' are left out: " in caplog.text
    assert "context 'test-3', turn 0: user() raised ValueError: division by nothing" in caplog.text
    with pytest.raises(DataError, match=r"failed 2 times each because of wrong data; .*expert/test/0: .*ValueError"):
        scripted(Divider(), "expert", CONTEXTS, settings(data_errors=0.3, retries=1))


class Silent(Letters):
    """Its user never answers on every third context."""

    never = threading.Event()

    def user(self, context, seed):
        if context.split == "test" and context.index % 3 == 0:
            self.never.wait(60)
        return super().user(context, seed)


def test_a_user_that_never_answers_is_left_out_and_named(caplog):
    assert scripted(Silent(), "expert", CONTEXTS, settings(data_errors=0.4, user_seconds=0.3)).n == 4
    Silent.never.set()
    late = "letters: conversation expert/test/3 with its user did not answer within 0.3 s"
    assert "2 of 6 conversations of the agent 'expert' are left out" in caplog.text and late in caplog.text


def test_conversations_in_which_nobody_spoke_are_a_sentence():
    opening = Conversation(
        id="0",
        environment="letters",
        split="test",
        context_id="test-0",
        sample=0,
        iteration=0,
        seed=0,
        turns=[Turn(Role.SYSTEM, "Write."), Turn(Role.USER, "Never mind.")],
        score=0.0,
        stop=StopReason.USER_LEFT,
    )
    with pytest.raises(DataError, match="none of 1 conversations of environment 'letters' has a turn of the agent"):
        well_formed(Letters(), to_table([opening]))
