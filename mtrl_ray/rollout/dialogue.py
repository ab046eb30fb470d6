"""A conversation of a rollout worker: the driver's text, and the token ids that the policy reads and samples.

`add_user_turn` appends the user's opening or reply and gives the next request for the engine, or None when the conversation
is over; `add_agent_turn` appends the sampled response and gives its text, for the user. `driver` asks the user.
"""

from dataclasses import dataclass

from mtrl_envs.base import Environment, Reply
from mtrl_envs.driver import Driver, make_context
from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, visible_text
from mtrl_ray.dialogue.tokens import ChatFormat
from mtrl_ray.rollout.engine import Generation, SampleRequest
from mtrl_ray.rollout.lease import Lease, State, derive_seed, fingerprint

CHARACTERS_PER_TOKEN = 16
"""A user's text is read up to this many characters for each token of the context window; what follows could not fit."""


@dataclass(frozen=True)
class Limits:
    """A worker's limits: tokens of one response and of the context window; and its sampling temperature."""

    response_tokens: int
    context_length: int
    temperature: float


class Dialogue:
    """The state of one conversation between two turns."""

    def __init__(self, lease: Lease, environment: Environment, chat: ChatFormat, limits: Limits) -> None:
        self.lease = lease
        self._chat, self._limits = chat, limits
        user_seed = lease.seed if lease.user_seed is None else lease.user_seed
        context = make_context(environment, lease.split, lease.index)
        self.driver = Driver(environment, context, derive_seed(user_seed, "user"))
        self._history: list[int] = []

    def add_agent_turn(self, generation: Generation) -> str:
        """Append the agent's response; its text, for the user."""
        text = self._chat.decode(generation.tokens)
        turn = Turn(Role.AGENT, text, generation.tokens, generation.logprobs, generation.versions, generation.finish)
        self.driver.add_agent_turn(turn)
        self._history += turn.tokens
        return text

    def add_user_turn(self, reply: Reply) -> SampleRequest | None:
        """Append the user's opening or reply; the next request, or None when the conversation is over.

        A user's text is cut to the context window; a reply that does not fit ends the conversation. Raises DataError if the
        opening and a response do not fit.
        """
        driver = self.driver
        first = not driver.turns
        turn = driver.add_user_turn(reply)
        last, prompt = driver.turns[-2], driver.stop is None
        turn.text = self._bounded(turn.text)
        last.sent = None if last.sent is None else self._bounded(last.sent)
        if first:
            last.tokens, turn.tokens = self._chat.open(last.text, turn.text, generation_prompt=prompt)
            self._history += last.tokens
        else:
            turn.tokens = self._chat.user_turn(
                visible_text(turn.text, last.sent), last.finish, generation_prompt=prompt
            )
        if not (first and prompt) and len(turn.tokens) > (room := self._limits.context_length - len(self._history)):
            turn.tokens = turn.tokens[: max(room, 0)]
            driver.stop = driver.stop or StopReason.TOKEN_LIMIT
        self._history += turn.tokens
        if driver.stop is None and len(self._history) + self._limits.response_tokens > self._limits.context_length:
            if first:
                raise driver.wrong(
                    f"the opening takes {len(self._history)} tokens and a response up to {self._limits.response_tokens}; "
                    f"model.context_length is {self._limits.context_length}"
                )
            driver.stop = StopReason.TOKEN_LIMIT
        if self.lease.state is not None and driver.agent_turns == self.lease.state.turns:
            self._restored(self.lease.state)
        return None if driver.stop is not None else self._request()

    @property
    def given(self) -> Generation | None:
        """The agent's next turn if the lease gives it; None: the engine samples it."""
        taken = self.driver.agent_turns
        return self.lease.given[taken] if taken < len(self.lease.given) else None

    def conversation(self) -> Conversation:
        """The finished conversation, with the outcome of its user."""
        lease = self.lease
        return self.driver.conversation(lease.id, lease.seed, lease.iteration, lease.sample)

    def _restored(self, state: State) -> None:
        """Check that this is the logged state, and have the user draw anew from here. Raises DataError."""
        if self.driver.stop is not None or fingerprint(self._history) != state.history:
            raise self.driver.wrong(
                f"{self.lease.id!r} cannot be continued: its user did not answer the logged turns as it did before; the "
                "environment, its options or the tokenizer are others, or its users do not repeat themselves"
            )
        if state.chance is not None:
            self.driver.redraw(state.chance)

    def _bounded(self, text: str) -> str:
        return text[: CHARACTERS_PER_TOKEN * self._limits.context_length]

    def _request(self) -> SampleRequest:
        return SampleRequest(
            id=f"{self.lease.id}/{self.driver.agent_turns}",
            prompt=list(self._history),
            seed=derive_seed(self.lease.seed, self.driver.agent_turns),
            max_tokens=self._limits.response_tokens,
            temperature=self._limits.temperature if self.lease.temperature is None else self.lease.temperature,
            mixture=self.lease.mixture,
        )
