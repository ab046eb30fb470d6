"""`User.redraw`: what happened stays, what happens from then on is drawn anew."""

import pytest

from mtrl_envs.base import Environment
from mtrl_envs.driver import Driver, make_context
from mtrl_envs.measure import scripted_agent
from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import Role, Turn

NAMES = ("sales", "car_dealer", "education", "medical", "math_tutoring", "document_writing")


def held(environment: Environment, index: int, redrawn: int | None) -> list[str]:
    """What the user says to the expert, with chance drawn anew after the first reply."""
    driver = Driver(environment, make_context(environment, "train", index), seed=index)
    agent = scripted_agent(environment, "expert", index)
    reply = driver.opening()
    while driver.add_user_turn(reply) and driver.stop is None:
        if driver.agent_turns == 1 and redrawn is not None:
            driver.redraw(redrawn)
        response = driver.respond(agent)
        driver.add_agent_turn(Turn(Role.AGENT, response))
        reply = driver.reply(response)
    return [turn.text for turn in driver.turns if turn.role == Role.USER]


@pytest.mark.parametrize("name", NAMES)
def test_the_past_stays_and_the_future_is_drawn_anew(name: str):
    environment = make(name)
    assert environment.redraws
    differ = 0
    for index in range(40):
        own, one, same, other = (held(environment, index, seed) for seed in (None, 1, 1, 2))
        assert own[:2] == one[:2] == other[:2] and one == same
        differ += one[2:] != other[2:]
    assert differ > 10, f"{differ} of 40 conversations of {name} differ"


def test_a_nature_is_not_drawn_again():
    """Whether a buyer says its budget is decided once."""
    environment = make("car_dealer")
    for index in range(60):
        said = set()
        for seed in range(6):
            user = environment.user(make_context(environment, "train", index), 5)
            user.opening()
            user.redraw(seed)
            said.add("$" in user.reply("What is your budget?").text)
        assert len(said) == 1
