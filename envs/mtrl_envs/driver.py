"""The driver of a conversation: who speaks next, when it ends, what it achieved, and what an environment may answer.

1. `opening` and `reply` call the user and check what it gives; they may run on any thread. `add_user_turn` and
   `add_agent_turn` append to `turns`. The conversation is over once `stop` is set; `conversation` then asks for the outcome.
2. Rollout workers, `mtrl chat`, `mtrl_envs.measure` and `mtrl check-env` drive every conversation through this class; it
   knows text and rewards, and nothing of tokens.
3. Whatever the environment gives is checked here: a text has to be a str that UTF-8 can encode, a number finite, a `stop` a
   StopReason. Numbers leave as plain floats. A wrong answer is a DataError that names the environment, the context, the
   turn, what was given and what would work.
4. An exception of the environment's own code becomes a DataError with its file and line. The project's own errors
   (`mtrl_ray.errors`) pass as they are.
"""

import json
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mtrl_envs.base import Agent, Context, Environment, Outcome, Probe, Reply, User
from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, visible_history
from mtrl_ray.errors import DataError, MtrlError
from mtrl_ray.settings.outside import raised

LARGEST = 3.4e38
"""Bound on the size of a reward: conversations keep rewards as 32-bit floats."""
SHOWN = 80
"""Characters of a wrong answer that a message repeats."""


def make_context(environment: Environment, split: str, index: int) -> Context:
    """The `index`-th context of a split, checked. Raises DataError."""
    where = f"environment {environment.name!r}, context {index} of split {split!r}"
    with explained(where, f"context({split!r}, {index})", environment):
        context: Any = environment.context(split, index)
    if not isinstance(context, Context):
        raise DataError(f"{where}: context() gave {shown(context)}; it has to give an mtrl_envs.base.Context")
    if not isinstance(context.id, str) or not context.id:
        raise DataError(f"{where}: Context.id is {shown(context.id)}; it has to be a text such as '{split}-{index}'")
    if (context.split, context.index) != (split, index):
        raise DataError(
            f"{where}: the Context says split {shown(context.split)} and index {shown(context.index)}; they have to be "
            "those that context() was called with"
        )
    _check_text(context.system, f"{where}: Context.system")
    try:
        if not isinstance(context.hidden, dict):
            raise TypeError("it is no dict")
        json.dumps(context.hidden, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: Context.hidden has to be a dict of JSON values ({error})") from None
    return context


class Driver:
    """One conversation of `environment` on `context`; `seed` is its user's.

    `turns` so far; `agent_turns` counts the agent's; `stop` is the reason why it is over, None while it goes on.
    """

    def __init__(self, environment: Environment, context: Context, seed: int) -> None:
        self.environment, self.context = environment, context
        self.turns: list[Turn] = []
        self.agent_turns = 0
        self.stop: StopReason | None = None
        with self._explained("user()"):
            user: Any = environment.user(context, seed)
        if not isinstance(user, User):
            raise self.wrong(f"user() gave {shown(user)}; it has to give an instance of mtrl_envs.base.User")
        self.user: User = user

    def opening(self) -> Reply:
        """The user's first message. Raises DataError."""
        with self._explained("opening()"):
            opening: Any = self.user.opening()
        if isinstance(opening, str):
            opening = Reply(opening)
        if not isinstance(opening, Reply):
            raise self.wrong(
                f"opening() gave {shown(opening)}; it has to give a text, or Reply(text, stop=…) to end at once"
            )
        reply = self._checked(opening, "opening()")
        if reply.sent is not None or reply.reward:
            raise self.wrong(
                "opening() gave a Reply with `sent` or `reward`; no agent turn came before it to have them"
            )
        return reply

    def reply(self, response: str) -> Reply:
        """The user's answer to the agent's response. Raises DataError."""
        with self._explained("reply()"):
            reply: Any = self.user.reply(response)
        if not isinstance(reply, Reply):
            raise self.wrong(f"reply() gave {shown(reply)}; it has to give a Reply, for example Reply('Yes.')")
        return self._checked(reply, "reply()")

    def respond(self, agent: Agent) -> str:
        """The next response of a scripted agent. Raises DataError."""
        with self._explained("the scripted agent's respond()"):
            response: Any = agent.respond(self.history)
        _check_text(response, f"{self.where}: the scripted agent's response")
        return str(response)

    def redraw(self, seed: int) -> None:
        """Have the user draw what happens from here on from this seed. Raises DataError if it cannot."""
        with self._explained("redraw()"):
            self.user.redraw(seed)

    def add_agent_turn(self, turn: Turn) -> None:
        """Append the agent's turn."""
        self.turns.append(turn)
        self.agent_turns += 1

    def add_user_turn(self, reply: Reply) -> Turn:
        """Append what `opening` or `reply` gave, and decide whether the conversation goes on; the turn."""
        if not self.turns:
            self.turns.append(Turn(Role.SYSTEM, self.context.system))
        else:
            self.turns[-1].sent, self.turns[-1].reward = reply.sent, reply.reward
        self.turns.append(Turn(Role.USER, reply.text))
        self.stop = reply.stop
        if self.stop is None and self.agent_turns >= self.environment.turn_limit:
            self.stop = StopReason.TURN_LIMIT
        return self.turns[-1]

    def conversation(self, identity: str, seed: int, iteration: int = 0, sample: int = 0) -> Conversation:
        """The finished conversation, with the outcome of its user. Raises DataError if that is invalid."""
        if self.stop is None:
            raise ValueError(f"conversation {identity!r} is not over")
        outcome = self._outcome()
        return Conversation(
            id=identity,
            environment=self.environment.name,
            split=self.context.split,
            context_id=self.context.id,
            turns=self.turns,
            score=outcome.score,
            stop=self.stop,
            metrics=outcome.metrics,
            context=self.context.hidden,
            iteration=iteration,
            sample=sample,
            seed=seed,
            source=self.context.source,
        )

    @property
    def history(self) -> list[tuple[Role, str]]:
        """What the agent reads, as (role, text): with a note of what was sent in place of an edited suggestion."""
        return visible_history(self.turns)

    @property
    def where(self) -> str:
        """Environment, context and turn, as the beginning of a sentence; turn 0 is the opening."""
        return f"environment {self.environment.name!r}, context {self.context.id!r}, turn {self.agent_turns}"

    def wrong(self, said: str) -> DataError:
        """The error of something in this conversation that cannot be."""
        return DataError(f"{self.where}: {said}")

    def _outcome(self) -> Outcome:
        with self._explained("outcome()"):
            outcome: Any = self.user.outcome()
        if not isinstance(outcome, Outcome):
            raise self.wrong(f"outcome() gave {shown(outcome)}; it has to give an Outcome, for example Outcome(1.0)")
        score = finite(outcome.score)
        if score is None or not 0.0 <= score <= 1.0:
            raise self.wrong(f"the outcome's score is {shown(outcome.score)}; it has to lie in [0, 1]")
        if not isinstance(outcome.metrics, Mapping):
            raise self.wrong(f"Outcome.metrics is {shown(outcome.metrics)}; it has to be a dict of numbers by name")
        return Outcome(
            score, {self._metric_name(name): self._metric(name, value) for name, value in outcome.metrics.items()}
        )

    def _metric_name(self, name: Any) -> str:
        if not isinstance(name, str):
            raise self.wrong(f"the name of a metric is {shown(name)}; it has to be a text")
        return name

    def _metric(self, name: str, value: Any) -> float:
        number = finite(value)
        if number is None:
            raise self.wrong(
                f"the metric {name!r} is {shown(value)}; metrics have to be finite numbers (leave out what does not apply)"
            )
        return number

    def _checked(self, reply: Reply, call: str) -> Reply:
        _check_text(reply.text, f"{self.where}: the text that {call} gave")
        if reply.sent is not None:
            _check_text(reply.sent, f"{self.where}: Reply.sent")
        reward = finite(reply.reward)
        if reward is None or abs(reward) > LARGEST:
            raise self.wrong(f"Reply.reward is {shown(reply.reward)}; it has to be a finite 32-bit number")
        if reply.stop is not None and not isinstance(reply.stop, StopReason):
            raise self.wrong(
                f"Reply.stop is {shown(reply.stop)}; it has to be None to go on, or a StopReason such as StopReason.OUTCOME"
            )
        return replace(reply, reward=reward)

    def _explained(self, call: str) -> Any:
        return explained(self.where, call, self.environment)


def is_well_formed(environment: Environment, response: str) -> bool:
    """`Environment.well_formed`, checked. Raises DataError."""
    with explained(f"environment {environment.name!r}", "well_formed()", environment):
        found: Any = environment.well_formed(response)
    if not isinstance(found, bool):
        raise DataError(f"environment {environment.name!r}: well_formed() gave {shown(found)}; it has to give a bool")
    return found


def probe_of(environment: Environment, history: Sequence[tuple[Role, str]]) -> Probe | None:
    """`Environment.probe`, checked. Raises DataError."""
    where = f"environment {environment.name!r}"
    with explained(where, "probe()", environment):
        found: Any = environment.probe(history)
    if found is None:
        return None
    if not isinstance(found, Probe):
        raise DataError(f"{where}: probe() gave {shown(found)}; it has to give an mtrl_envs.base.Probe, or None")
    _check_text(found.right, f"{where}: Probe.right")
    _check_text(found.wrong, f"{where}: Probe.wrong")
    return found


@contextmanager
def explained(where: str, call: str, environment: object) -> Iterator[None]:
    """An exception of the environment's code (`sys.exit` too) becomes a DataError: `where`, the call, the cause, its file
    and line."""
    try:
        yield
    except MtrlError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"{where}: {call} raised {raised(error, type(environment).__module__, __file__)}") from error


def finite(value: Any) -> float | None:
    """A number as a float; None for what is no finite number."""
    if not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def shown(value: Any) -> str:
    """A wrong answer as a message repeats it."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # its own code, too
        text = f"an object of type {type(value).__name__}"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _check_text(value: Any, what: str) -> None:
    if not isinstance(value, str):
        raise DataError(f"{what} is {shown(value)}; it has to be a str")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{what} is {shown(value)}; UTF-8 cannot encode it, so it is no text") from None
