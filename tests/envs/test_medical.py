"""The knowledge table of `medical` decides what is right; both sides read free text."""

from collections import Counter

import pytest

from mtrl_envs.medical.agents import QUESTIONS, verdict_of
from mtrl_envs.medical.environment import SYSTEM_WITH_TABLE
from mtrl_envs.medical.knowledge import CONDITIONS, PATIENT, RISKS, TOLD, TOPICS, consistent, points, sample_case
from mtrl_envs.medical.moves import doctor_move, told, verdict
from mtrl_envs.medical.user import expected
from mtrl_envs.registry import make

CASE = {"condition": "migraine", "complaint": "head", "symptom": "light", "history": "months", "risk": "thinners"}
URGENT = {"condition": "meningitis", "complaint": "head", "symptom": "light", "history": "today", "risk": "none"}


def grade(case: dict[str, str], answer: str) -> dict[str, float]:
    """Metrics of a final answer."""
    environment = make("medical")
    context = environment.context("train", 0)
    context.hidden.update(case)
    user = environment.user(context, 0)
    user.opening()
    reply = user.reply(answer)
    assert reply.reward == user.outcome().score == user.outcome().metrics["points"] / 10
    return user.outcome().metrics


@pytest.mark.parametrize(
    ("case", "answer", "number", "accurate"),
    [
        (CASE, "Diagnosis: migraine. Rest in the dark. No aspirin.", 10, 1),
        (CASE, "You have a migraine; a dark room helps, and avoid ibuprofen.", 10, 1),
        (CASE, "Diagnosis: migraine. Rest in the dark.", 7, 0),
        (CASE, "Diagnosis: migraine. Rest in the dark. No aspirin, no penicillin.", 7, 0),
        (CASE, "Diagnosis: migraine. No aspirin.", 7, 0),
        (CASE, "Diagnosis: migraine.", 4, 0),
        (CASE, "Diagnosis: sinusitis. Rest in the dark. No aspirin.", 1, 0),
        (CASE, "Diagnosis: asthma. Rest in the dark. No aspirin.", 0, 0),
        (CASE, "Diagnosis: migraine or sinusitis. Rest in the dark. No aspirin.", 0, 0),
        (CASE, "Diagnosis: unknown.", 0, 0),
        (URGENT, "This is meningitis, go to the emergency room.", 10, 1),
        (URGENT, "Diagnosis: migraine. Rest in the dark.", 0, 0),
    ],
)
def test_points(case: dict[str, str], answer: str, number: float, accurate: float) -> None:
    metrics = grade(case, answer)
    assert (metrics["points"], metrics["accurate"]) == (number, accurate)


def test_complaint_symptom_and_history_determine_the_condition() -> None:
    keys = Counter((c.complaint, c.symptom, c.history) for c in CONDITIONS.values())
    assert set(keys.values()) == {1}
    assert set(Counter(c.complaint for c in CONDITIONS.values()).values()) == {4}
    for condition in CONDITIONS.values():
        case = {topic: getattr(condition, topic) for topic in ("complaint", "symptom", "history")}
        assert consistent(case, frozenset({"symptom", "history"})) == [condition]
        assert len(consistent(case, frozenset())) == 4


def test_which_question_tells_most_depends_on_the_patient() -> None:
    led_by = Counter()
    for condition in CONDITIONS.values():
        case = {topic: getattr(condition, topic) for topic in ("complaint", "symptom", "history")} | {"risk": "none"}
        worth = {topic: expected(case, frozenset({topic})) for topic in TOPICS}
        led_by[max(worth, key=worth.__getitem__)] += 1
        assert expected(case, frozenset(TOPICS)) == 10
        assert min(worth.values()) >= expected(case, frozenset()) > 0
    assert min(led_by["symptom"], led_by["history"]) >= 3


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_can_be_named_and_advised(name: str) -> None:
    condition = CONDITIONS[name]
    case = {"condition": name, "complaint": condition.complaint}
    for risk in RISKS:
        given = verdict(verdict_of(name, risk))
        assert given.diagnosis == name
        assert points(case | {"risk": risk}, name, name in given.advised, given.heeded) == 10
        assert make("medical").well_formed(verdict_of(name, risk))
    assert condition.advice in SYSTEM_WITH_TABLE


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("Do you have any other complaints?", ("symptom",)),
        ("What else is wrong?", ("symptom",)),
        ("Please describe how it feels.", ("symptom",)),
        ("Can you tell me when it started?", ("history",)),
        ("How long have you had this?", ("history",)),
        ("Has this happened before?", ("history",)),
        ("Are you taking any medication?", ("risk",)),
        ("Any chronic illness?", ("risk",)),
        ("Could you be pregnant?", ("risk",)),
        ("Any other symptoms? And since when?", ("symptom", "history")),
        ("I see.", ()),
    ],
)
def test_questions_are_understood_in_other_words(text: str, asks: tuple[str, ...]) -> None:
    move = doctor_move(text)
    assert (move.asks, move.answer) == (asks, None)


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("It looks like a migraine.", True),
        ("Diagnosis: migraine. Is that clear?", True),
        ("You are diagnosed with something rare.", True),
        ("Could it be a migraine?", False),
        ("It may be a migraine. How long has it lasted?", False),
        ("Rest in the dark.", False),
    ],
)
def test_what_counts_as_a_diagnosis(text: str, final: bool) -> None:
    assert (doctor_move(text).answer is not None) == final


def test_agents_understand_every_saying_of_the_patient() -> None:
    for topic, values in PATIENT.items():
        assert set(values) == set(TOLD[topic])
        for value, variants in values.items():
            assert all(told(text) == {topic: value} for text in variants), (topic, value)


def test_patients_understand_every_phrase_of_the_agents() -> None:
    environment = make("medical")
    for topic, variants in QUESTIONS.items():
        assert all(doctor_move(text).asks == (topic,) and environment.well_formed(text) for text in variants)


def test_pregnancy_has_its_age() -> None:
    import random

    cases = [sample_case(random.Random(seed)) for seed in range(500)]
    assert max(case["age"] for case in cases if case["risk"] == "pregnancy") <= 45
    assert max(case["age"] for case in cases) > 70
