"""One conversation being held: a user, a history of token ids, and what happens next.

`begin` gives the first request for the engine, `hear` takes the agent's response to the user, and `answer` takes the
user's reply and gives the next request, or None when the conversation is over and `finished` may be called.
"""

from dataclasses import dataclass

from mtrl_envs.base import Context, Environment, Reply, User
from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, heard
from mtrl_ray.dialogue.tokens import ChatFormat
from mtrl_ray.errors import DataError
from mtrl_ray.rollout.engine import Generation, SampleRequest
from mtrl_ray.rollout.lease import Lease, derive_seed


@dataclass(frozen=True)
class Limits:
    """Of a worker: tokens of one response, tokens of a context window, the sampling temperature."""

    response_tokens: int
    context_length: int
    temperature: float


class Dialogue:
    """The state of one conversation between two turns."""

    def __init__(self, lease: Lease, environment: Environment, chat: ChatFormat, limits: Limits) -> None:
        self.lease = lease
        self._environment, self._chat, self._limits = environment, chat, limits
        self._user_seed = lease.seed if lease.user_seed is None else lease.user_seed
        self.context: Context = environment.context(lease.split, lease.index)
        self.user: User = environment.user(self.context, derive_seed(self._user_seed, "user"))
        self._turns: list[Turn] = []
        self._history: list[int] = []
        self._taken = 0  # agent turns
        self._stop: StopReason | None = None

    def begin(self, opening: str) -> SampleRequest | None:
        """The first request, after the user's first message."""
        system, user = self._chat.open(self.context.system, opening)
        self._append(Turn(Role.SYSTEM, self.context.system, tokens=system))
        self._append(Turn(Role.USER, opening, tokens=user))
        if not self._fits():
            raise DataError(
                f"{self._environment.name}, context {self.context.id!r}: the opening takes {len(self._history)} tokens "
                f"and a response up to {self._limits.response_tokens}; model.context_length is {self._limits.context_length}"
            )
        return self._request()

    def hear(self, generation: Generation) -> str:
        """Append the agent's response; its text, for the user."""
        text = self._chat.decode(generation.tokens)
        self._append(
            Turn(Role.AGENT, text, generation.tokens, generation.logprobs, generation.versions, generation.finish)
        )
        self._taken += 1
        return text

    @property
    def given(self) -> Generation | None:
        """The agent's next turn where the lease gives it; None: the engine is to be asked."""
        return self.lease.given[self._taken] if self._taken < len(self.lease.given) else None

    def answer(self, reply: Reply) -> SampleRequest | None:
        """Append the user's reply; the next request, or None when the conversation has ended."""
        last = self._turns[-1]
        last.sent, last.reward = reply.sent, float(reply.reward)
        self._stop = reply.stop
        if self._stop is None and self._taken >= self._environment.max_turns:
            self._stop = StopReason.TURN_LIMIT
        message = heard(reply.text, reply.sent)
        tokens = self._chat.user_turn(message, last.finish, generation_prompt=self._stop is None)
        self._append(Turn(Role.USER, reply.text, tokens=tokens))
        if self._stop is None and not self._fits():
            self._stop = StopReason.TOKEN_LIMIT
        return None if self._stop else self._request()

    def finished(self, stop: StopReason = StopReason.TURN_LIMIT) -> Conversation:
        """The conversation, its outcome asked of the user; `stop` where nobody has said why it ended."""
        outcome = self.user.outcome()
        if not 0.0 <= outcome.score <= 1.0:
            raise DataError(
                f"{self._environment.name}, context {self.context.id!r}: the outcome's score is {outcome.score}; "
                "it has to lie in [0, 1]"
            )
        return Conversation(
            id=self.lease.id,
            environment=self._environment.name,
            split=self.lease.split,
            context_id=self.context.id,
            turns=self._turns,
            score=float(outcome.score),
            stop=self._stop or stop,
            metrics=outcome.metrics,
            context=self.context.hidden,
            iteration=self.lease.iteration,
            sample=self.lease.sample,
            seed=self.lease.seed,
            source=self.context.source,
        )

    def _append(self, turn: Turn) -> None:
        self._turns.append(turn)
        self._history += turn.tokens

    def _fits(self) -> bool:
        return len(self._history) + self._limits.response_tokens <= self._limits.context_length

    def _request(self) -> SampleRequest:
        return SampleRequest(
            id=f"{self.lease.id}/{self._taken}",
            prompt=list(self._history),
            seed=derive_seed(self.lease.seed, self._taken),
            max_tokens=self._limits.response_tokens,
            temperature=self._limits.temperature,
            mixture=self.lease.mixture,
        )
