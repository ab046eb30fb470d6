"""What an environment is: contexts per split, a user per context, an outcome, and scripted agents.

1. `Environment.context(split, index)` is a pure function: the same arguments give the same task on every machine, and
   no context of one split occurs in another.
2. `Environment.user(context, seed)` starts one conversation. `User.opening()` is its first message; `User.reply(text)`
   takes the agent's response and gives the user's; `User.outcome()` is asked once, after the end. `mtrl_envs.driver` calls
   these methods and checks what they give.
3. A scripted user draws only from its own seed, so a conversation is a function of (context, seed, what the agent said).
   A user that talks to a network sets `blocking = True` and is called off the sampling loop's thread. A user with
   `redraw` can go on from any state in another way than it did: how good an answer is shows over several such draws.
4. `Environment.agent(name, seed)` gives the scripted agents `expert`, `greedy` and `random`, as many of them as there are;
   they read what the policy reads (the conversation's text, never the context's hidden part). Reports compare the policy
   with them, and the tiny model is warm-started on a mixture of them; a pretrained model needs none.
5. An environment may have a probe, `Environment.probe`: pairs of answers that show, and teach, whether a model takes up
   what it was told.
6. An environment may have a preference oracle, `Environment.prefer`: which of two finished conversations on the same
   context is better (see `mtrl_envs.preferences`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason
from mtrl_ray.errors import ConfigurationError

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Context:
    """One task: what the agent is told (`system`), and what only the environment knows (`hidden`, JSON values).

    `source`: what the task was made from, if several contexts were made from it (a recorded consultation, a customer).
    Contexts of one source count once in an interval. None: the context is its own source.
    """

    id: str
    split: str
    index: int
    system: str
    hidden: dict[str, Any] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True)
class Reply:
    """The user's answer to one agent turn.

    `sent`: what reached the user in place of the suggestion (None: the suggestion as it is). `reward`: what arrives with
    the new state, a finite 32-bit number. `stop`: the reason if the conversation ends with this reply; None, and nothing
    else, if it goes on.
    """

    text: str
    sent: str | None = None
    reward: float = 0.0
    stop: StopReason | None = None


@dataclass(frozen=True)
class Outcome:
    """What a finished conversation achieved: `score` in [0, 1], and the environment's own `metrics`, finite numbers."""

    score: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Probe:
    """Two answers of the agent in one state: `right`, and `wrong`, which is right but for what the user said."""

    right: str
    wrong: str


class User(ABC):
    """The other side of one conversation."""

    blocking: ClassVar[bool] = False

    @abstractmethod
    def opening(self) -> str | Reply:
        """The user's first message; a Reply with `stop` if the conversation ends with it and the agent never speaks."""

    @abstractmethod
    def reply(self, response: str) -> Reply:
        """The answer to an agent's response (plain text, as sampled; it may be empty or nonsense)."""

    def redraw(self, seed: int) -> None:
        """Draw what happens from the next reply on from this seed; what has happened, and the user's nature, stay.

        Optional. A user without chance defines it and does nothing.
        """
        raise NotImplementedError

    @abstractmethod
    def outcome(self) -> Outcome:
        """The result, asked once after the conversation has ended for whatever reason."""


class Agent(Protocol):
    """A scripted policy. `history` is what the model reads: (role, text) pairs, the system message first."""

    def respond(self, history: Sequence[tuple[Role, str]]) -> str:
        """The next response."""


class Environment(ABC):
    """A family of tasks. Subclass it; a run finds it as `environment.name=package.module:ClassName`."""

    name: ClassVar[str]
    max_turns: ClassVar[int]
    """Agent turns after which a conversation ends with `StopReason.TURN_LIMIT`."""
    warm_start: ClassVar[dict[str, float]] = {}
    """Shares of the scripted agents in the conversations a tiny model is first trained on; they sum to 1. Empty: there are
    no scripted agents, and a run needs a pretrained `model.path`."""
    criterion: ClassVar[str] = (
        "The better conversation is the one in which the assistant did more for what the user wants."
    )
    """What an LLM that compares two conversations is told makes one better (`mtrl_envs.llm.pair_judge`)."""

    @abstractmethod
    def context(self, split: str, index: int) -> Context:
        """The `index`-th task of a split (0-based, unbounded)."""

    @abstractmethod
    def user(self, context: Context, seed: int) -> User:
        """A new user for one conversation; all chance of a scripted user comes from `seed`."""

    def agent(self, name: str, seed: int) -> Agent:
        """The scripted agent `expert`, `greedy` or `random`, for one conversation. Raises KeyError(name) for one that the
        environment does not have; by default it has none.
        """
        raise KeyError(name)

    def probe(self, history: Sequence[tuple[Role, str]]) -> Probe | None:
        """Two answers that show whether a policy takes up what the user said; None if this state is not suited.

        Optional. Depends on the history alone. The answers differ in as little as possible, and only what the user said in this
        history tells which one is right. A warm start ends when the model prefers the right ones.
        """
        return None

    @abstractmethod
    def well_formed(self, response: str) -> bool:
        """Whether a response is a turn this environment's users understand."""

    @property
    def turn_limit(self) -> int:
        """Agent turns after which a conversation ends: `max_turns`, unless an option says otherwise."""
        return self.max_turns

    @property
    def blocking(self) -> bool:
        """Whether its users wait for a network, as that of the first training context does (`User.blocking`)."""
        return self.user(self.context("train", 0), 0).blocking

    @property
    def redraws(self) -> bool:
        """Whether its users, as that of the first training context, define `User.redraw`."""
        return type(self.user(self.context("train", 0), 0)).redraw is not User.redraw

    def prefer(self, first: Conversation, second: Conversation) -> float:
        """P(first ≻ second), in [0, 1], of two finished conversations on the same context (2405.14655 §3).

        Deterministic, and `prefer(second, first) == 1 - prefer(first, second)` exactly. Raises ConfigurationError if
        the environment has no oracle, DataError for conversations that it cannot compare.
        """
        raise ConfigurationError(
            f"environment {self.name!r} has no preference oracle; define its method prefer(first, second), "
            "or take preferences from an LLM judge or from a file of pairs"
        )
