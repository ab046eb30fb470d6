"""Talking to a policy: a person in the user's place, or a simulated user to watch. One engine in this process, no Ray."""

from collections.abc import Callable
from pathlib import Path

from mtrl_envs.base import Outcome, Reply, User
from mtrl_envs.registry import make
from mtrl_ray.dialogue.chat import chat_format
from mtrl_ray.dialogue.conversation import Conversation, StopReason
from mtrl_ray.rollout.choice import make_engine
from mtrl_ray.rollout.dialogue import Dialogue, Limits
from mtrl_ray.rollout.lease import Lease, derive_seed
from mtrl_ray.settings.tree import Settings

Say = Callable[[str, str], None]
"""Shows who said what."""


class Person(User):
    """A user whose words come from `ask`; an empty line, or the end of the input, ends the conversation."""

    def __init__(self, ask: Callable[[], str]) -> None:
        self._ask = ask

    def opening(self) -> Reply:
        """The person's first words."""
        text = self._ask()
        return Reply(text, stop=None if text else StopReason.USER_LEFT)

    def reply(self, response: str) -> Reply:
        """The person's answer."""
        return self.opening()

    def outcome(self) -> Outcome:
        """A person's conversation is not scored."""
        return Outcome(0.0)


class PolicyChat:
    """A policy to talk to. `engine`: as `rollout.engine`; transformers starts fastest."""

    def __init__(self, settings: Settings, model: Path, engine: str) -> None:
        rollout = settings.rollout.model_copy(update={"engine": engine, "concurrency": 1})
        self._settings = settings
        self._environment = make(settings.environment.name, **settings.environment.options)
        self._chat = chat_format(str(model))
        self._engine = make_engine(str(model), self._chat.stop_ids, rollout, settings.model)
        self._limits = Limits(rollout.response_tokens, settings.model.context_length, rollout.temperature)

    def watch(self, index: int, say: Say) -> Conversation:
        """The policy with the simulated user of the `index`-th test context."""
        return self._roll_out(self._dialogue(index), say, lambda text: say("user", text))

    def talk(self, index: int, ask: Callable[[], str], say: Say) -> Conversation:
        """Let the policy talk to a person, with the system text of the `index`-th test context."""
        dialogue = self._dialogue(index)
        dialogue.driver.user = Person(ask)
        say("system", dialogue.driver.context.system)
        return self._roll_out(dialogue, say, lambda text: None)

    def _dialogue(self, index: int) -> Dialogue:
        lease = Lease("test", index, 0, 0, derive_seed(self._settings.run.seed, "chat", index))
        return Dialogue(lease, self._environment, self._chat, self._limits)

    def _roll_out(self, dialogue: Dialogue, say: Say, say_user: Callable[[str], None]) -> Conversation:
        reply = dialogue.driver.opening()
        say_user(reply.text)
        while (request := dialogue.add_user_turn(reply)) is not None:
            self._engine.submit(request)
            while not (finished := self._engine.step()):
                pass
            response = dialogue.add_agent_turn(finished[0])
            say("agent", response)
            reply = dialogue.driver.reply(response)
            if reply.sent is not None:
                say("sent instead", reply.sent)
            say_user(reply.text)
        return dialogue.conversation()
