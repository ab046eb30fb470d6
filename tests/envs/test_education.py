"""`education`: moods of the student, what the judgement counts and in which order, cycles, and that planning pays."""

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrl_envs import measure
from mtrl_envs.education.agents import ASK, ASK_STYLE, CHALLENGE, COMFORT, PRAISE, Teacher
from mtrl_envs.education.conduct import Conduct, Exchange, Lesson, cycle, judge, margin
from mtrl_envs.education.environment import judged
from mtrl_envs.education.moves import ASPECTS, STYLES, student_signs
from mtrl_envs.education.user import DISTRESSED, REACTIONS, SAYINGS, WISHES, Student
from mtrl_envs.registry import make
from mtrl_envs.win_rates import scripted_win_rate
from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, validate
from mtrl_ray.errors import ConfigurationError, DataError
from tests.envs.test_llm import Endpoint, endpoint  # noqa: F401

PROFILE = {
    "topic": "volcanoes",
    "preference": "creative",
    "reaction": "anxious",
    "order": ["magma", "ash", "crater", "heat"],
    "turns": 8,
    "patience": 3,
}
STORY = "Imagine you are the magma."
FACTS = "Here are the facts on the ash."


def student(**changes: Any) -> Student:
    return Student("key", {**PROFILE, **changes})


def said(person: Student, *messages: str) -> list[str]:
    return [person.reply(message).text for message in messages]


@pytest.mark.parametrize("reaction", REACTIONS)
def test_a_style_that_is_not_met_gets_the_reaction(reaction):
    person = student(reaction=reaction)
    first, second = said(person, FACTS, STORY)
    expected = WISHES["creative"] if reaction == "tells" else SAYINGS[reaction]
    assert first in expected
    assert second in SAYINGS["pleased"]


@pytest.mark.parametrize("style", STYLES)
def test_a_student_tells_its_style_when_asked(style):
    answers = {
        student_signs(said(Student(f"{n}", {**PROFILE, "preference": style}), ASK_STYLE[0])[0]).told for n in range(40)
    }
    assert answers == {style, None}, "vague now and then"


def test_moods():
    for reaction in DISTRESSED:
        assert said(student(reaction=reaction), FACTS, ASK[2])[1] in SAYINGS[reaction], (
            "a distressed student does not learn"
        )
        assert said(student(reaction=reaction), FACTS, COMFORT[0])[1] in SAYINGS["relieved"]
        answer = said(student(reaction=reaction), FACTS, f"{COMFORT[0]} {ASK[2]}")[1]
        assert student_signs(answer).words == {"magma"}
    assert said(student(reaction="rude"), FACTS, COMFORT[0])[1] in SAYINGS["rude"], "comfort is no answer to boredom"
    told = said(student(reaction="disengaged"), FACTS, ASK_STYLE[1])[1]
    assert told in (*WISHES["creative"], *SAYINGS["vague"])
    adapted = said(student(reaction="adapts"), FACTS, "Here are the facts on the heat.")
    assert adapted[0] in SAYINGS["adapts"] and adapted[1] in SAYINGS["fine"]


def test_questions_and_challenges_come_too_early():
    assert said(student(reaction="rude"), ASK[2])[0] in SAYINGS["early"]
    assert said(student(), STORY, CHALLENGE[0].format(aspect="ash"))[1] in SAYINGS["hard"]
    replies = said(student(), STORY, ASK[2], f"Yes, the magma. {CHALLENGE[0].format(aspect='ash')}")
    assert [student_signs(reply).words for reply in replies[1:]] == [{"magma"}, {"crater"}]
    not_taken_up = said(student(), STORY, ASK[2], f"Yes, the heat. {CHALLENGE[0].format(aspect='ash')}")
    assert not_taken_up[2] in SAYINGS["hard"]


def test_an_answer_is_never_the_aspect_in_the_question():
    person = student(turns=15)
    said(person, STORY)
    for aspect in (*PROFILE["order"], *PROFILE["order"]):
        assert student_signs(said(person, f"Why does the {aspect} matter?")[0]).words != {aspect}


@pytest.mark.parametrize(
    ("messages", "left"),
    [
        (["Shut up, idiot."], True),
        (["The of and."] * 3, True),
        (["Here are the facts on the moon."] * 3, True),
        ([FACTS, "Great!", "Great!", "Great!"], True),
        ([ASK_STYLE[0], FACTS, FACTS], False),
        (["The of and.", "", STORY], False),
    ],
)
def test_what_costs_patience(messages, left):
    person = student()
    replies = [person.reply(message) for message in messages]
    assert [reply.stop for reply in replies] == [None] * (len(messages) - 1) + [StopReason.USER_LEFT if left else None]
    assert person.outcome().score == 0 and person.outcome().metrics["stayed"] == 0


def test_one_who_told_its_wish_and_is_ignored_leaves():
    person = student(reaction="tells")
    stops = [person.reply(f"Here are the facts on the {aspect}.").stop for aspect in PROFILE["order"]]
    assert stops == [None, None, None, StopReason.USER_LEFT]


def test_the_lesson_ends_with_the_score_as_the_reward():
    person = student(turns=3)
    replies = [person.reply(text) for text in (f"Great! {STORY}", ASK[2], f"Yes, the magma. Great! {STORY}")]
    assert [reply.stop for reply in replies] == [None, None, StopReason.OUTCOME]
    assert [reply.reward for reply in replies[:2]] == [0, 0]
    assert replies[2].text.endswith(SAYINGS["end"]) and replies[2].reward == person.outcome().score > 0.3


ANSWER, PLEASED, UPSET, FINE = "I think it is the heat.", "I like that.", "I am so nervous.", "Okay."
CHALLENGED = CHALLENGE[0].format(aspect="ash")


def conduct(*exchanges: tuple[str, str], preference: str = "creative", adapts: bool = False) -> Conduct:
    return judge(Lesson(preference, adapts, [Exchange(*one) for one in exchanges]))


def test_a_question_counts_when_its_answer_is_taken_up():
    taken_up = conduct((ASK[2], ANSWER), ("Yes, the heat.", FINE))
    assert (taken_up.taken_up, taken_up.challenged) == (1, 0)
    for later in ("Yes, the ash.", "The heat?", STORY):
        assert conduct((ASK[2], ANSWER), (later, FINE)).taken_up == 0, later
    assert conduct((ASK[2], ANSWER), ("Great!", FINE), ("Yes, the heat.", FINE)).taken_up == 0, "too late"
    assert conduct(("Yes, the heat.", FINE), (ASK[2], ANSWER)).taken_up == 0, "the wrong order"
    assert conduct((ASK[2], "No idea about heat."), ("Yes, the heat.", FINE)).taken_up == 0, "no answer"


def test_comfort_counts_after_distress_only():
    assert conduct((STORY, UPSET), (COMFORT[0], FINE)).comforted == 1
    assert conduct((STORY, UPSET), (ASK[2], FINE)).comforted == 0
    assert conduct((COMFORT[0], FINE), (STORY, UPSET), (ASK[2], FINE)).comforted == 0
    assert conduct((COMFORT[0], FINE), (STORY, FINE)).comforted == 1, "nothing to comfort"
    assert conduct((STORY, UPSET)).comforted == 1, "no message could follow"


def test_a_challenge_counts_after_an_answer_was_taken_up_and_not_in_distress():
    prepared = [(ASK[2], ANSWER), ("Yes, the heat.", FINE)]
    assert conduct(*prepared, (CHALLENGED, ANSWER)).challenged == 1
    assert conduct((CHALLENGED, ANSWER), *prepared).challenged == 0
    assert conduct(*prepared, (STORY, UPSET), (CHALLENGED, ANSWER)).challenged == 0
    assert conduct(*prepared, (CHALLENGED, UPSET)).challenged == 0


def test_presentations_need_news_and_enthusiasm():
    assert conduct((STORY, FINE)).presented == 0.5
    assert conduct((f"{PRAISE[0]} {STORY}", FINE)).presented == 1
    assert conduct((STORY, FINE), (STORY, FINE)).presented == 0.5
    assert conduct((STORY, FINE), (FACTS, FINE)).presented == 1
    assert conduct((ASK[0].format(aspect="magma"), FINE), (STORY, FINE)).presented == 0.5, (
        "to ask about it tells nothing"
    )
    assert conduct((STORY, FINE), (STORY, FINE), (FACTS, FINE)).varied == pytest.approx(2 / 3)


def test_the_preference_counts_once_it_shows():
    assert conduct((FACTS, FINE), (STORY, FINE)).matched == 0.2
    assert conduct((FACTS, PLEASED)).matched == 0.5
    assert conduct((FACTS, FINE), (STORY, PLEASED), (STORY, FINE), (FACTS, FINE)).matched == 0.5
    assert conduct((ASK_STYLE[0], WISHES["creative"][0]), (FACTS, FINE)).matched == 0
    assert conduct((ASK_STYLE[0], WISHES["creative"][0]), (FACTS, FINE), adapts=True).matched == 0.5


def test_the_quality_is_no_sum_over_turns():
    """The same messages in another order, and the worth of a message beside others."""
    lesson = [(f"Great! {STORY}", PLEASED), (ASK[2], ANSWER), ("Yes, the heat.", FINE), (CHALLENGED, ANSWER)]
    lesson += [("Right, the heat.", FINE)]
    qualities = {round(conduct(*order).quality, 9) for order in permutations(lesson)}
    best = conduct(*lesson).quality
    assert best == pytest.approx(max(qualities)) and min(qualities) < 0.5 * best and len(qualities) > 3
    alone = conduct((STORY, FINE)).quality
    gains = [conduct(*((f"Imagine you are the {one}.", FINE) for one in ASPECTS[:n])).quality for n in (1, 2, 3)]
    assert alone == gains[0] and gains[1] - gains[0] > gains[2] - gains[1] > 0
    challenge = conduct(*lesson[:3]).quality, conduct(*lesson[:1], lesson[3]).quality - conduct(lesson[0]).quality
    assert best - challenge[0] > 0.1 > challenge[1]


def test_the_score_is_what_the_oracle_sees_of_a_lesson():
    for agent in measure.AGENTS:
        for lesson in measure.conversations(make("education"), agent, 40, "train"):
            own, quality = judged(lesson)
            assert quality == lesson.score
            assert {"presented": own.presented, "varied": own.varied}.items() <= lesson.metrics.items()
            left = replace(lesson, stop=StopReason.USER_LEFT)
            assert judged(left)[1] == 0


def test_the_expert_wins():
    environment = make("education")
    over_greedy, over_random = (scripted_win_rate(environment, "expert", other, 128) for other in ("greedy", "random"))
    assert over_greedy.low > 0.8 and over_random.low > 0.9
    assert scripted_win_rate(environment, "greedy", "random", 128).low > 0.8
    noisy = scripted_win_rate(
        make("education", preference_noise=0.3, preference_noise_kind="flipped"), "expert", "greedy", 128
    )
    assert noisy.mean == pytest.approx(0.7, abs=0.1)


def styled(name: str, texts: list[str]) -> Conversation:
    turns = [Turn(Role.SYSTEM, "Teach."), Turn(Role.USER, "Hi, teach me about volcanoes.")]
    for text in texts:
        turns += [Turn(Role.AGENT, text), Turn(Role.USER, FINE)]
    return Conversation(name, "education", "train", "x", turns, 0.0, StopReason.OUTCOME, context=PROFILE)


def test_three_manners_beat_each_other_in_a_cycle():
    lecture = styled("l", [f"Here are the facts on the {aspect}." for aspect in PROFILE["order"]])
    question = styled("q", [ASK[2], *(f"Why does the {aspect} matter?" for aspect in PROFILE["order"][1:])])
    coach = styled("c", [COMFORT[0], COMFORT[1], CHALLENGED, CHALLENGED])
    idle, mixed = styled("i", ["Great!"] * 4), styled("m", [FACTS, ASK[2], CHALLENGED, "Great!"][:3])
    prefer = make("education", cyclic=1.0).prefer
    assert prefer(question, lecture) > 0.99 and prefer(coach, question) > 0.99 and prefer(lecture, coach) > 0.99
    for one in (lecture, question, coach):
        assert prefer(one, idle) > 0.99 and prefer(one, mixed) == pytest.approx(0.5)
    transitive = make("education").prefer
    assert transitive(lecture, question) > 0.5 < transitive(lecture, idle)
    assert transitive(question, coach) == 0.5
    halfway = make("education", cyclic=0.5).prefer
    assert 0.5 < halfway(question, lecture) < prefer(question, lecture)


shares = st.tuples(*[st.integers(0, 8)] * 4).filter(sum).map(lambda n: tuple(part / sum(n) for part in n[:3]))


@given(one=shares, other=shares, cyclic=st.floats(0, 1))
def test_margins_change_their_sign_exactly(one, other, cyclic):
    assert cycle(one, other) == -cycle(other, one) and abs(cycle(one, other)) <= 1 + 1e-12
    first, second = (Conduct(1.0, 1, 1, 1.0, 1.0, 1.0, manners) for manners in (one, other))
    there = margin((first, first.quality), (second, 0.0), cyclic, 10.0)
    assert there == -margin((second, 0.0), (first, first.quality), cyclic, 10.0) and abs(there) <= 0.5


def test_greedy_says_what_raises_the_judgement_most_at_once():
    """Over many states, no other kind of message has a higher mean judgement if the lesson ended with it."""
    kinds = {
        "ask": ASK[2],
        "ask_style": ASK_STYLE[0],
        "challenge": CHALLENGED,
        "comfort": COMFORT[0],
        "take_up": "Yes, the magma.",
        "praise": PRAISE[0],
    }
    gains: dict[str, list[float]] = {kind: [] for kind in (*kinds, "greedy")}
    for index in range(60):
        context = make("education").context("train", index)
        for before in range(4):
            for kind in gains:
                person, teacher = Student(f"{index}", {**context.hidden, "turns": before + 1}), Teacher("greedy", index)
                history = [(Role.USER, person.opening())]
                for turn in range(before + 1):
                    last = turn == before and kind != "greedy"
                    text = kinds[kind] if last else teacher.respond(history)
                    history += [(Role.AGENT, text), (Role.USER, person.reply(text).text)]
                gains[kind].append(person.outcome().score)
    for before in range(4):
        means = {kind: sum(scores[before::4]) / 60 for kind, scores in gains.items()}
        assert max(means, key=means.__getitem__) == "greedy", (before, means)


@settings(max_examples=60, deadline=None)
@given(messages=st.lists(st.text(max_size=200), min_size=1, max_size=15), index=st.integers(0, 20))
def test_any_text_gets_a_sane_reply(messages, index):
    context = make("education").context("train", index)
    person = make("education").user(context, 0)
    for message in messages:
        reply = person.reply(message)
        assert reply.text
        if reply.stop is not None:
            break
    assert 0 <= person.outcome().score <= 1


def test_the_length_is_an_option():
    environment = make("education", shortest=10, longest=15)
    lessons = list(measure.conversations(environment, "expert", 40))
    assert {len(lesson.agent_turns) for lesson in lessons} == set(range(10, 16))
    assert all(lesson.stop == StopReason.OUTCOME for lesson in lessons)
    assert (
        measure.mean_outcome(environment, "expert", 40).mean > 2 * measure.mean_outcome(environment, "greedy", 40).mean
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"shortest": 9},
            "shortest is 9 and longest 8; they have to be whole numbers with 1 <= shortest <= longest <= 15",
        ),
        ({"longest": 16}, "longest 16"),
        ({"shortest": 2.5}, "shortest is 2.5"),
        ({"cyclic": 1.5}, "education: cyclic is 1.5; it has to be a number from 0 to 1"),
        ({"sharpness": 0}, "education: sharpness is 0; it has to be a number above 0"),
        ({"preference_noise": -1}, "education: preference_noise is -1"),
        ({"user": "llm"}, "llm needs at least base_url and model"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(ConfigurationError, match=message):
        make("education", **options)


def test_a_conversation_without_its_context_cannot_be_compared():
    first, second = (replace(styled(name, [FACTS]), context={}) for name in "ab")
    with pytest.raises(DataError, match="'a' lacks 'preference' in its context"):
        make("education").prefer(first, second)


def test_a_student_played_by_an_llm(endpoint: Endpoint):  # noqa: F811
    def person(body: dict[str, Any]) -> tuple[int, str]:
        message = body["messages"][-1]["content"]
        if "learn?" in message or "way of learning" in message:
            return 200, "I'd like to hear stories."
        return 200, "Because of the gases, I suppose." if "?" in message else "I like that!"

    endpoint.answer = person
    environment = make("education", user="llm", llm={"base_url": endpoint.url, "model": "m"})
    context = environment.context("test", 0)
    context.hidden["preference"] = "creative"
    taught = measure.rollout(environment, context, "expert", 0)
    validate(taught)
    assert taught.stop == StopReason.OUTCOME and len(taught.agent_turns) == context.hidden["turns"]
    assert taught.metrics["matched"] == 1 and taught.score == judged(taught)[1] > 0.2
    system = endpoint.requests[0]["messages"][0]["content"]
    assert context.hidden["topic"] in system and "stories, pictures" in system and "[END: left]" in system
    endpoint.answer = lambda body: (200, "Hi." if len(body["messages"]) < 4 else "I go. [END: left]")
    gone = measure.rollout(environment, context, "expert", 0)
    assert (gone.stop, gone.score, gone.turns[-1].text) == (StopReason.USER_LEFT, 0.0, "I go.")
