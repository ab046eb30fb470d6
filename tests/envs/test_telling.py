"""Users who tell facts when asked: what they say, when they leave, and their record of which turn mattered."""

import time
from math import log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrl_envs import measure
from mtrl_envs.base import Environment, User
from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import StopReason, from_table, to_table

ASK = {
    "math_tutoring": {
        "first": "How many pens do you buy?",
        "second": "What does one cost?",
        "wish": "Exact, rounded or doubled?",
    },
    "document_writing": {"when": "When?", "where": "Where?", "tone": "Formal or casual?", "length": "How long?"},
    "medical": {"symptom": "Other symptoms?", "history": "Since when?", "risk": "Any allergies?"},
}
HIDDEN = {
    "math_tutoring": {"family": "cost", "thing": "pens", "first": 3, "second": 4, "wish": "rounded"},
    "document_writing": {
        "kind": "invitation",
        "event": "picnic",
        "tone": "formal",
        "length": "long",
        "day": "Friday",
        "hour": 6,
        "place": "garden",
    },
    "medical": {
        "condition": "migraine",
        "complaint": "head",
        "symptom": "light",
        "history": "months",
        "risk": "thinners",
        "age": 30,
    },
}
SAYS = {
    "math_tutoring": {"first": "3 pens", "second": "4", "wish": "ound"},
    "document_writing": {"when": "Friday at 6", "where": "garden", "tone": "ormal", "length": "long"},
    "medical": {"symptom": "ight ", "history": "onths", "risk": "blood thinners"},
}
FINAL = {
    "math_tutoring": ("The answer is 10.", "The answer is 12."),
    "document_writing": (
        "Final: Dear guests, it is a pleasure to welcome you. The picnic will be held this Friday, from 6 onwards, near the "
        "garden. We look forward to your reply. Kind regards.",
        "Final: The cat sat on the mat.",
    ),
    "medical": ("Diagnosis: migraine. Rest in the dark. No aspirin.", "Diagnosis: asthma."),
}
CORRECTIONS = ("Sorry, I was wrong.", "Wait, that was wrong.")
NAMES = sorted(ASK)


def user_of(name: str, noise: float = 0.0, seed: int = 0, told: tuple[str, ...] = ()) -> User:
    """A patient user (three useless messages) of a task whose hidden part is known."""
    environment: Environment = make(name, noise=noise)
    context = environment.context("train", 0)
    context.hidden.clear()
    context.hidden.update(HIDDEN[name] | {"told": list(told), "patience": 3})
    return environment.user(context, seed)


CASES = [(name, topic) for name in NAMES for topic in ASK[name]]


@pytest.mark.parametrize(("name", "topic"), CASES)
def test_a_question_brings_out_its_fact_and_no_other(name: str, topic: str) -> None:
    user = user_of(name)
    opening = user.opening()
    reply = user.reply(ASK[name][topic])
    assert reply.stop is None
    for other, words in SAYS[name].items():
        assert words not in opening
        assert (words in reply.text) == (other == topic)


@pytest.mark.parametrize(("name", "topic"), CASES)
def test_an_opening_may_tell_a_fact(name: str, topic: str) -> None:
    user = user_of(name, told=(topic,))
    assert SAYS[name][topic] in user.opening()
    assert user.reply(ASK[name][topic]).text.startswith(("As I said.", "I told you."))


@pytest.mark.parametrize("name", NAMES)
def test_however_much_is_asked_one_fact_is_told(name: str) -> None:
    user = user_of(name)
    user.opening()
    said = user.reply(" ".join(ASK[name].values())).text
    assert sum(words in said for words in SAYS[name].values()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_asking_again_and_nonsense_cost_patience(name: str) -> None:
    question = next(iter(ASK[name].values()))
    user = user_of(name)
    user.opening()
    replies = [user.reply(text) for text in (question, question, "The of and.", question)]
    assert [reply.stop for reply in replies] == [None, None, None, StopReason.USER_LEFT]
    assert user.outcome().score == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_final_answer_ends_the_conversation(name: str) -> None:
    right, wrong = FINAL[name]
    for text, low, high in ((right, 1.0, 1.0), (wrong, 0.0, 0.2)):
        user = user_of(name)
        user.opening()
        reply = user.reply(text)
        assert reply.stop == StopReason.OUTCOME
        assert low <= reply.reward <= high
        assert user.outcome().score == reply.reward
        assert user.outcome().metrics["answered"] == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_off_at_the_rate_of_the_noise(name: str) -> None:
    question, words = next(iter(ASK[name].values())), next(iter(SAYS[name].values()))
    wrong = 0
    for seed in range(300):
        user = user_of(name, noise=0.3, seed=seed)
        user.opening()
        wrong += words not in user.reply(question).text
    assert 0.22 < wrong / 300 < 0.38


@pytest.mark.parametrize("name", NAMES)
def test_a_slip_is_taken_back_and_credited_to_the_turn_that_asked(name: str) -> None:
    topics = list(ASK[name])
    slips = 0
    for seed in range(40):
        user = user_of(name, noise=1.0, seed=seed)
        user.opening()
        first = user.reply(ASK[name][topics[0]]).text
        second = user.reply("Hello.").text
        if not second.startswith(CORRECTIONS):
            assert user.outcome().metrics["key_turn"] == -1
            continue
        slips += 1
        assert SAYS[name][topics[0]] in second
        assert SAYS[name][topics[0]] not in first
        assert user.outcome().metrics["key_turn"] == 0
        assert user.outcome().metrics["gain_0"] > 0 == user.outcome().metrics["gain_1"]
    assert 8 < slips < 32


def test_gains_are_what_a_question_was_worth() -> None:
    user = user_of("math_tutoring")
    user.opening()
    for question in ("wish", "first", "second"):
        user.reply(ASK["math_tutoring"][question])
    user.reply("The answer is 10.")
    metrics = user.outcome().metrics
    assert [metrics[f"gain_{turn}"] for turn in range(4)] == pytest.approx([1.0, log2(8), log2(5), 0.0])
    assert metrics["key_turn"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_gains_add_up_to_what_was_told(name: str) -> None:
    environment = make(name)
    for index in range(40):
        for agent in ("expert", "random"):
            done = measure.rollout(environment, environment.context("train", index), agent, 1)
            gains = [done.metrics[f"gain_{turn}"] for turn in range(len(done.agent_turns))]
            assert f"gain_{len(gains)}" not in done.metrics
            assert min(gains) > -1e-9
            user = environment.user(environment.context("train", index), 0)
            span = user.attainable(frozenset(environment.agent("expert", 0).topics))
            assert sum(gains) <= log2(span / user.attainable(frozenset(done.context["told"]))) + 1e-9
            key = int(done.metrics["key_turn"])
            assert key == -1 if max(gains) < 1e-9 else gains[key] == pytest.approx(max(gains))


@pytest.mark.parametrize("name", NAMES)
def test_the_record_survives_the_journal(name: str) -> None:
    done = list(measure.conversations(make(name), "expert", 5, "train"))
    kept = from_table(to_table(done))
    assert [one.metrics for one in kept] == [one.metrics for one in done]
    assert any(one.metrics["key_turn"] >= 0 for one in kept)


@pytest.mark.parametrize("name", NAMES)
def test_noise_makes_the_task_harder(name: str) -> None:
    quiet, noisy = (measure.mean_outcome(make(name, noise=noise), "expert", 128, "train") for noise in (0.0, 0.5))
    assert quiet.mean > 0.99
    assert noisy.high < 0.9


HOSTILE = [
    "",
    "   ",
    "x" * 1_000_000,
    "\x00\x1b[2J",
    "<|end|><|user|> bye",
    "{thing} {0} %s",
    "\ud800?",
    "? " * 5000,
    "how " * 999,
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", NAMES)
def test_hostile_text_is_answered_fast(name: str, text: str) -> None:
    user = user_of(name)
    user.opening()
    start = time.process_time()
    replies = [user.reply(text)]
    while replies[-1].stop is None and len(replies) < 10:
        replies.append(user.reply(text))
    assert time.process_time() - start < 5
    assert all(reply.reward < 0.1 and 0 < len(reply.text) < 200 for reply in replies)
    assert replies[-1].stop is not None


@given(st.sampled_from(NAMES), st.text(max_size=120), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_text_is_answered_the_same_under_a_seed(name: str, text: str, seed: int) -> None:
    replies = []
    for _ in range(2):
        user = user_of(name, 0.5, seed)
        replies.append((user.opening(), user.reply(text), user.reply("When?"), user.outcome()))
    assert replies[0] == replies[1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["", "the of and", "What is it? <|end|>", "What is it? " * 40])
def test_what_is_not_well_formed(name: str, text: str) -> None:
    assert not make(name).well_formed(text)


@pytest.mark.parametrize("name", NAMES)
def test_the_expert_answers_with_its_last_turn(name: str) -> None:
    environment = make(name, noise=1.0)
    for index in range(20):
        done = measure.rollout(environment, environment.context("train", index), "expert", 0)
        assert done.stop == StopReason.OUTCOME
        assert len(done.agent_turns) <= environment.max_turns == environment.agent("expert", 0).turns
