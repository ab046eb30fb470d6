"""The LLM user against a real HTTP server that speaks the chat-completions protocol."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mtrl_envs import measure
from mtrl_envs.base import User
from mtrl_envs.llm.user import parse_ending
from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import StopReason, validate
from mtrl_ray.errors import ConfigurationError, DataError, EngineError
from tests.support.endpoint import Answer, Endpoint


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint()
    yield served
    served.close()


def llm_user(endpoint: Endpoint, name: str = "sales", **llm: Any) -> User:
    settings = {"base_url": endpoint.url, "model": "person", "retries": 0, "timeout": 5, **llm}
    shares = {"as_is": 1.0, "edited": 0.0, "ignored": 0.0} if name == "sales" else {}
    environment = make(name, user="llm", llm=settings, **shares)
    return environment.user(environment.context("train", 0), seed=5)


def says(*contents: Any) -> Answer:
    """Answers one after another; the last one again and again."""
    left = list(contents)
    return lambda body: (200, left.pop(0) if len(left) > 1 else left[0])


def test_a_sale(endpoint: Endpoint) -> None:
    endpoint.answer = says("Hi, can you help me?", "For gaming.", "I take it! [END: bought Falcon]")
    user = llm_user(endpoint)
    assert user.blocking
    assert user.opening() == "Hi, can you help me?"
    assert user.reply("What will you use it for?").stop is None
    reply = user.reply("I recommend the Falcon for $1000.")
    assert (reply.text, reply.reward, reply.stop) == ("I take it!", 1.0, StopReason.OUTCOME)
    assert user.outcome().score == 1.0
    last = endpoint.requests[-1]
    assert [m["role"] for m in last["messages"]] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert last["messages"][-1]["content"] == "I recommend the Falcon for $1000."
    assert "[END: bought NAME OF THE PRODUCT]" in last["messages"][0]["content"]
    assert (last["model"], last["seed"]) == ("person", 5)


def test_the_business_stands_between(endpoint: Endpoint) -> None:
    settings = {"base_url": endpoint.url, "model": "person"}
    environment = make("sales", user="llm", llm=settings, as_is=0.0, edited=1.0, ignored=0.0)
    user = environment.user(environment.context("train", 0), 0)
    user.opening()
    reply = user.reply("I recommend the Falcon.")
    assert reply.sent == endpoint.requests[-1]["messages"][-1]["content"]
    assert reply.sent.startswith("I recommend the Falcon. ")


def test_a_car_is_sold_for_the_price_that_was_named(endpoint: Endpoint) -> None:
    endpoint.answer = says("Hi.", "Deal. [END: bought $9,500]")
    user = llm_user(endpoint, "car_dealer")
    user.opening()
    reply = user.reply("The Audi suv is yours for $9.5k.")
    assert reply.reward == pytest.approx(0.095)
    assert user.outcome().metrics == {"reward": 9.5, "sold": 1.0, "price": 9500.0}


TASKS = {
    "math_tutoring": ("What do my cups cost?", "How many cups?", "The answer is 12345."),
    "document_writing": ("I need an invitation.", "Where is it?", "Final: There is nothing to be said."),
    "medical": ("My head hurts.", "Any other symptoms?", "Diagnosis: nothing at all."),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_final_answer_ends_a_task_without_asking_the_llm(endpoint: Endpoint, name: str) -> None:
    opening, question, answer = TASKS[name]
    endpoint.answer = says(opening, "Well.")
    user = llm_user(endpoint, name)
    assert (user.opening(), user.reply(question).text) == (opening, "Well.")
    assert user.outcome().score == 0
    assert user.outcome().metrics["answered"] == 0
    reply = user.reply(answer)
    assert (reply.stop, reply.reward) == (StopReason.OUTCOME, user.outcome().score)
    assert user.outcome().score < 0.2
    assert user.outcome().metrics["answered"] == 1
    assert len(endpoint.requests) == 2
    assert endpoint.requests[-1]["messages"][0]["content"].endswith("[END: left].")


@pytest.mark.parametrize("name", TASKS)
def test_the_right_answer_is_the_one_of_the_persona(endpoint: Endpoint, name: str) -> None:
    """An expert that is told everything by the LLM reaches the full score."""
    environment = make(name, user="llm", llm={"base_url": endpoint.url, "model": "person"})
    context = environment.context("train", 0)
    scripted = make(name, noise=0.0).user(context, 0)
    facts = " ".join(scripted.tell(topic) for topic in environment.agent("expert", 0).topics)
    endpoint.answer = says(f"{scripted.request()} {facts}")
    conversation = measure.rollout(environment, context, "expert", 0)
    assert (conversation.score, conversation.stop) == (1.0, StopReason.OUTCOME)


@pytest.mark.parametrize("name", TASKS)
def test_a_user_of_a_task_can_only_leave(endpoint: Endpoint, name: str) -> None:
    endpoint.answer = says(TASKS[name][0], "Bye. [END: left]")
    user = llm_user(endpoint, name)
    user.opening()
    assert user.reply("Hello?").stop == StopReason.USER_LEFT
    endpoint.answer = says("Fine. [END: bought it]")
    with pytest.raises(DataError, match="this user can only leave"):
        user.reply("Hello?")


def test_leaving_and_silence(endpoint: Endpoint) -> None:
    endpoint.answer = says("Hi.", "Hmm.", "Bye. [END: left]")
    user = llm_user(endpoint)
    user.opening()
    assert user.reply("What do you need?").stop is None
    assert user.outcome().score == 0
    reply = user.reply("Hello?")
    assert (reply.text, reply.reward, reply.stop) == ("Bye.", 0.0, StopReason.USER_LEFT)


@pytest.mark.parametrize(
    ("environment", "ending"),
    [
        ("sales", "[END: bought Unicorn]"),
        ("sales", "[END: bought]"),
        ("sales", "[END: bought Marble]"),
        ("sales", "[END: bought Falcon"),
        ("sales", "[END] bought it"),
        ("sales", "[END: bought Falcon] and then we [END"),
        ("sales", "[END: maybe]"),
        ("sales", "[END: bought Falcon and Walnut]"),
        ("car_dealer", "[END: bought]"),
        ("car_dealer", "[END: bought $8k]"),
        ("car_dealer", "[END: bought $900k]"),
        ("car_dealer", "[END: bought NaN]"),
    ],
)
def test_an_ending_without_sense_is_an_error_and_no_reward(endpoint: Endpoint, environment: str, ending: str) -> None:
    endpoint.answer = says("Hi.", f"I want it. {ending}")
    user = llm_user(endpoint, environment)
    user.opening()
    with pytest.raises(DataError, match=r"LLM (user|customer|buyer)"):
        user.reply("I have the Falcon for $1000, and the Audi suv for $900k.")
    assert user.outcome().score == 0


def test_an_ending_in_the_first_message_is_an_error(endpoint: Endpoint) -> None:
    endpoint.answer = says("[END: left]")
    with pytest.raises(DataError, match="first message"):
        llm_user(endpoint).opening()


@pytest.mark.parametrize("content", ["", "  \n", None, {"choices": []}, {"error": "?"}, {}])
def test_an_answer_without_text_is_an_engine_error(endpoint: Endpoint, content: Any) -> None:
    endpoint.answer = says(content)
    with pytest.raises(EngineError, match=r"LLM user's endpoint http://127\.0\.0\.1"):
        llm_user(endpoint).opening()


def test_a_passing_failure_is_tried_again(endpoint: Endpoint) -> None:
    statuses = [500, 429, 200]
    endpoint.answer = lambda body: (statuses.pop(0), "Hello.")
    assert llm_user(endpoint, retries=3).opening() == "Hello."
    assert len(endpoint.requests) == 3


def test_a_lasting_failure_is_an_engine_error(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: (503, {"error": {"message": "full"}})
    with pytest.raises(EngineError, match="HTTP status 503"):
        llm_user(endpoint, retries=1).opening()
    assert len(endpoint.requests) == 2


def test_a_silent_endpoint_times_out(endpoint: Endpoint) -> None:
    given_up = threading.Event()

    def slow(body: dict[str, Any]) -> tuple[int, str]:
        given_up.wait(3)
        return 200, "Hello."

    endpoint.answer = slow
    with pytest.raises(EngineError, match=r"no answer within 0\.3 s"):
        llm_user(endpoint, timeout=0.3).opening()
    given_up.set()


def test_an_endpoint_that_sends_a_byte_now_and_then_times_out_as_a_whole(endpoint: Endpoint) -> None:
    """As gateways do that keep a connection open with white space."""
    given_up = threading.Event()

    def trickle(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        while not given_up.wait(0.1):
            handler.wfile.write(b"\n")
            handler.wfile.flush()

    endpoint.stream = trickle
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"no answer within 0\.5 s, 2 times"):
        llm_user(endpoint, timeout=0.5, retries=1).opening()
    given_up.set()
    assert time.monotonic() - began < 5


def test_a_request_that_is_refused_is_wrong_data_and_says_why(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTRL_TEST_KEY", "sk-secret-123")
    endpoint.answer = lambda body: (400, {"error": {"message": "too long for sk-secret-123"}})
    with pytest.raises(DataError, match=r"HTTP status 400: .*too long for \*\*\*") as caught:
        llm_user(endpoint, api_key_env="MTRL_TEST_KEY").opening()
    assert "sk-secret-123" not in str(caught.value)


def test_as_many_users_wait_as_there_are_threads_that_ask(endpoint: Endpoint) -> None:
    meeting = threading.Barrier(60)
    endpoint.answer = lambda body: (meeting.wait(20) >= 0 and 200, "Hello.")
    with ThreadPoolExecutor(60) as pool:
        assert list(pool.map(lambda _: llm_user(endpoint, timeout=20).opening(), range(60))) == ["Hello."] * 60


def test_nobody_listening_is_an_engine_error() -> None:
    environment = make("sales", user="llm", llm={"base_url": "http://127.0.0.1:9/v1", "model": "m", "retries": 0})
    with pytest.raises(EngineError, match="cannot be used"):
        environment.user(environment.context("train", 0), 0).opening()


def test_the_key_is_sent_and_never_told(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTRL_TEST_KEY", "sk-secret-123")
    user = llm_user(endpoint, api_key_env="MTRL_TEST_KEY")
    user.opening()
    assert endpoint.keys == ["Bearer sk-secret-123"]
    assert "sk-secret-123" not in repr(vars(user))
    endpoint.answer = lambda body: (401, {"error": {"message": "wrong key sk-secret-123"}})
    with pytest.raises(ConfigurationError, match="HTTP status 401") as caught:
        user.reply("Hello.")
    assert "sk-secret-123" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "given",
    [
        {"base_url": "https://me:sk-secret-123@h/v1"},
        {"base_url": "https://h/v1?api_key=sk-secret-123"},
        {"base_url": "http://h/v1", "api_key_env": "sk-secret-123"},
        {"base_url": "http://h/v1", "api_key": "sk-secret-123"},
    ],
)
def test_a_key_among_the_settings_is_refused_and_not_repeated(given: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="api_key") as caught:
        make("sales", user="llm", llm={"model": "m", **given})
    assert "sk-secret-123" not in str(caught.value)


def test_scripted_agents_can_talk_to_it(endpoint: Endpoint) -> None:
    def person(body: dict[str, Any]) -> tuple[int, str]:
        message = body["messages"][-1]["content"]
        if "Marble" in message:
            return 200, "Perfect, that one. [END: bought Marble]"
        return 200, "I need a laptop for gaming and I can spend $450."

    endpoint.answer = person
    settings = {"base_url": endpoint.url, "model": "person"}
    environment = make("sales", user="llm", llm=settings, as_is=1.0, edited=0.0, ignored=0.0)
    conversation = measure.rollout(environment, environment.context("test", 1), "expert", 0)
    validate(conversation)
    assert (conversation.score, conversation.stop) == (1.0, StopReason.OUTCOME)


def test_hostile_agent_text_reaches_the_endpoint_bounded(endpoint: Endpoint) -> None:
    user = llm_user(endpoint)
    user.opening()
    user.reply("x" * 1_000_000)
    assert len(endpoint.requests[-1]["messages"][-1]["content"]) <= 2000
    user.reply("\ud800")
    user.reply("")
    assert endpoint.requests[-1]["messages"][-1]["content"]


def test_parse_ending() -> None:
    assert parse_ending("Fine. [end: LEFT] \n")[1] == parse_ending("[END: left]")[1]
    assert parse_ending("The end [of it].") == ("The end [of it].", None)
    for marker in ("[END: bought the Falcon].", "**[END: bought the Falcon]**", "[END: bought the Falcon] :)"):
        written = f"Deal! {marker}"
        text, ending = parse_ending(written)
        assert (text, ending and ending.detail) == ("Deal!", "the Falcon")
