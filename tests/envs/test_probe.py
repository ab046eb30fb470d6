"""Probes: pairs of answers that only what the user said tells apart."""

import pytest

from mtrl_envs import measure
from mtrl_envs.base import Probe
from mtrl_envs.car_dealer.agents import known as dealer_knows
from mtrl_envs.car_dealer.moves import seller_move as dealer_move
from mtrl_envs.education.moves import student_signs, teacher_move
from mtrl_envs.registry import ENVIRONMENTS, make
from mtrl_envs.sales.agents import known
from mtrl_envs.sales.moves import CATALOGUE, fitting, seller_move
from mtrl_ray.dialogue.conversation import Conversation, Role, visible_history
from mtrl_ray.run.tiny_model import probes

NAMES = sorted(ENVIRONMENTS)


def spoken(name: str, count: int = 60) -> list[Conversation]:
    return list(measure.conversations(make(name), measure.MIXTURE, count, "train"))


@pytest.mark.parametrize("name", NAMES)
def test_pairs_differ_in_their_last_turn_alone(name: str) -> None:
    environment = make(name)
    found = probes(environment, spoken(name))
    assert len(found) >= 24
    for right, wrong in zip(found[::2], found[1::2], strict=True):
        assert right.turns[:-1] == wrong.turns[:-1] and right.turns[-1].role == Role.AGENT
        assert right.turns[-1].text != wrong.turns[-1].text
        assert environment.well_formed(right.turns[-1].text) and environment.well_formed(wrong.turns[-1].text)


@pytest.mark.parametrize("name", NAMES)
def test_a_probe_depends_on_the_history_alone(name: str) -> None:
    first, second = make(name), make(name)
    histories = [visible_history(held.turns[:place]) for held in spoken(name, 20) for place in held.agent_turns]
    assert [first.probe(one) for one in histories] == [second.probe(one) for one in reversed(histories)][::-1]


def states(name: str) -> list[tuple[list[tuple[Role, str]], Probe]]:
    environment = make(name)
    histories = [visible_history(held.turns[:place]) for held in spoken(name) for place in held.agent_turns]
    return [(one, found) for one in histories if (found := environment.probe(one)) is not None]


def test_in_sales_the_budget_decides() -> None:
    for history, found in states("sales"):
        state = known(history)
        assert state.kind and state.use and state.budget
        right, wrong = (CATALOGUE[seller_move(text).offers[0]] for text in (found.right, found.wrong))
        assert right == fitting(state.kind, state.use, state.budget)
        assert (wrong.kind, wrong.use) == (right.kind, right.use) and wrong != right


def test_in_car_dealer_the_wish_decides() -> None:
    for history, found in states("car_dealer"):
        state = dealer_knows(history)
        right, wrong = (dealer_move(text) for text in (found.right, found.wrong))
        assert (right.brand, right.type) == (state.brand, state.type)
        assert (wrong.brand == state.brand) != (wrong.type == state.type)


def test_in_education_the_wished_style_decides() -> None:
    for history, found in states("education"):
        wished = student_signs(history[-1][1]).told
        right, wrong = (teacher_move(text) for text in (found.right, found.wrong))
        assert right.style == wished != wrong.style and right.aspects == wrong.aspects
