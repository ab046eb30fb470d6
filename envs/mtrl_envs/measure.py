"""Text-only conversations between scripted agents and users, and what they achieve.

1. `rollout` makes one conversation: the agent reads what the policy would read (after an edited or ignored suggestion,
   the note of what was sent); turns carry text and rewards, no tokens.
2. `agent` may also be `warm_start`: the agent of each conversation is then drawn by shares, by default the environment's.
3. Identity and everything said follow from (split, index, agent, seed).
4. An interval is over what the contexts were made from (`Context.source`): with 22 recorded consultations, 256 contexts
   are 22 clusters.
"""

import random
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mtrl_envs.base import Agent, Context, Environment
from mtrl_envs.driver import Driver, explained, make_context, shown
from mtrl_ray.dialogue.conversation import Conversation, Role, Turn, source_name
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.statistics.estimates import Estimate, mean_interval

AGENTS = ("expert", "greedy", "random")
MIXTURE = "warm_start"


def mean_score(held: Iterable[Conversation]) -> Estimate:
    """The mean score of conversations, with its 95 % interval. Raises ConfigurationError if there are none."""
    known = list(held)
    if not known:
        raise ConfigurationError("a mean needs at least one conversation, 0 were asked for")
    return mean_interval([one.score for one in known], clusters=[source_of(one) for one in known])


def source_of(held: Conversation) -> str:
    """The cluster of a conversation in an interval."""
    return source_name(held.environment, held.split, held.context_id, held.source)


def mean_outcome(
    environment: Environment, agent_name: str, contexts: int, split: str = "test", seed: int = 0
) -> Estimate:
    """Mean score of a scripted agent over the first `contexts` contexts of a split."""
    return mean_score(conversations(environment, agent_name, contexts, split, seed))


def conversations(
    environment: Environment,
    agent_name: str,
    contexts: int,
    split: str = "test",
    seed: int = 0,
    shares: Mapping[str, float] | None = None,
) -> Iterator[Conversation]:
    """One finished conversation per context, in order of the index."""
    for index in range(contexts):
        yield rollout(environment, make_context(environment, split, index), agent_name, seed, shares)


def rollout(
    environment: Environment, context: Context, agent: str, seed: int, shares: Mapping[str, float] | None = None
) -> Conversation:
    """One conversation with a scripted agent. Raises ConfigurationError for an agent that the environment does not have,
    DataError for a wrong answer of the environment (`mtrl_envs.driver`).

    `shares` of the agents in a mixture; None: the environment's own.
    """
    identity = f"{environment.name}/{context.split}/{context.index}/{agent}/{seed}"
    drawn = stable_seed(identity)
    player = scripted_agent(environment, _drawn(environment, agent, drawn, shares), drawn)
    driver = Driver(environment, context, drawn)
    driver.add_user_turn(driver.opening())
    while driver.stop is None:
        response = driver.respond(player)
        driver.add_agent_turn(Turn(Role.AGENT, response))
        driver.add_user_turn(driver.reply(response))
    return driver.conversation(identity, seed=drawn)


def scripted_agent(environment: Environment, name: str, seed: int) -> Agent:
    """A scripted agent for one conversation. Raises ConfigurationError if the environment has no agent of that name."""
    if name not in AGENTS:
        raise ConfigurationError(f"unknown scripted agent {name!r}: use one of {', '.join((*AGENTS, MIXTURE))}")
    found = _agent(environment, name, seed)
    if found is None:
        having = ", ".join(scripted_agents(environment)) or "none"
        raise ConfigurationError(f"environment {environment.name!r} has no scripted agent {name!r}; it has: {having}")
    return found


def scripted_agents(environment: Environment) -> tuple[str, ...]:
    """Names of the scripted agents that an environment has: those for which `agent` raises no KeyError of the name."""
    return tuple(name for name in AGENTS if _agent(environment, name, 0) is not None)


def _agent(environment: Environment, name: str, seed: int) -> Agent | None:
    with explained(f"environment {environment.name!r}", f"agent({name!r}, {seed})", environment):
        try:
            found: Any = environment.agent(name, seed)
        except KeyError as error:
            if error.args == (name,):
                return None
            raise
    if not callable(getattr(found, "respond", None)):
        raise DataError(
            f"environment {environment.name!r}: agent({name!r}, {seed}) gave {shown(found)}; it has to give an object with "
            "a method respond(history), or to raise KeyError(name)"
        )
    return found


def stable_seed(identity: str) -> int:
    """A 32-bit seed from a text, the same on every machine."""
    return zlib.crc32(identity.encode())


def _drawn(environment: Environment, agent: str, seed: int, shares: Mapping[str, float] | None) -> str:
    if agent != MIXTURE:
        return agent
    given = environment.warm_start if shares is None else shares
    if not given:
        raise ConfigurationError(
            f"environment {environment.name!r} has no warm_start: give it shares of its scripted agents "
            f"({', '.join(scripted_agents(environment)) or 'it has none'}) that sum to 1"
        )
    return random.Random(f"mixture/{seed}").choices(list(given), weights=list(given.values()))[0]
