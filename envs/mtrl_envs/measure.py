"""Text-only conversations between scripted agents and users, and what they achieve.

1. `converse` holds one conversation: the agent reads what the policy would read (after an edited or ignored suggestion,
   the note of what was sent); turns carry text and rewards, no tokens.
2. `agent` may also be `warm_start`: each conversation is then held by one agent drawn by shares, the environment's own
   where none are given.
3. Identity and everything said follow from (split, index, agent, seed).
4. An interval is over what the contexts were made from (`Context.source`): with 22 recorded consultations, 256 contexts
   are 22 clusters.
"""

import random
import zlib
from collections.abc import Iterable, Iterator, Mapping

from mtrl_envs.base import Context, Environment
from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, heard, source_name
from mtrl_ray.errors import ConfigurationError
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
        yield converse(environment, environment.context(split, index), agent_name, seed, shares)


def converse(
    environment: Environment, context: Context, agent: str, seed: int, shares: Mapping[str, float] | None = None
) -> Conversation:
    """Hold one conversation with a scripted agent. Raises ConfigurationError for an unknown agent.

    `shares` of the agents in a mixture; None: the environment's own.
    """
    identity = f"{environment.name}/{context.split}/{context.index}/{agent}/{seed}"
    drawn = stable_seed(identity)
    player = environment.agent(_player(agent, drawn, environment.warm_start if shares is None else shares), drawn)
    user = environment.user(context, drawn)
    turns = [Turn(Role.SYSTEM, context.system), Turn(Role.USER, user.opening())]
    history = [(turn.role, turn.text) for turn in turns]
    stop = StopReason.TURN_LIMIT
    for _ in range(environment.max_turns):
        response = player.respond(history)
        reply = user.reply(response)
        turns += [Turn(Role.AGENT, response, sent=reply.sent, reward=reply.reward), Turn(Role.USER, reply.text)]
        history += [(Role.AGENT, response), (Role.USER, heard(reply.text, reply.sent))]
        if reply.stop is not None:
            stop = reply.stop
            break
    outcome = user.outcome()
    return Conversation(
        id=identity,
        environment=environment.name,
        split=context.split,
        context_id=context.id,
        turns=turns,
        score=outcome.score,
        stop=stop,
        metrics=outcome.metrics,
        context=context.hidden,
        seed=drawn,
        source=context.source,
    )


def stable_seed(identity: str) -> int:
    """A 32-bit seed from a text, the same on every machine."""
    return zlib.crc32(identity.encode())


def _player(agent: str, seed: int, shares: Mapping[str, float]) -> str:
    if agent == MIXTURE:
        return random.Random(f"mixture/{seed}").choices(list(shares), weights=list(shares.values()))[0]
    if agent not in AGENTS:
        raise ConfigurationError(f"unknown scripted agent {agent!r}: use one of {', '.join((*AGENTS, MIXTURE))}")
    return agent
