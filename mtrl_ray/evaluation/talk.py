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

    def __init__(self, ask: Callable[[], str], say: Say) -> None:
        self._ask, self._say = ask, say

    def opening(self) -> str:
        """The person's first words."""
        return self._ask()

    def reply(self, response: str) -> Reply:
        """Show the response, ask for an answer."""
        self._say("agent", response)
        text = self._ask()
        return Reply(text, stop=None if text else StopReason.USER_LEFT)

    def outcome(self) -> Outcome:
        """A person's conversation is not scored."""
        return Outcome(0.0)


class Watched(User):
    """A simulated user whose turns are shown."""

    def __init__(self, user: User, say: Say) -> None:
        self._user, self._say = user, say

    def opening(self) -> str:
        """See `User.opening`."""
        text = self._user.opening()
        self._say("user", text)
        return text

    def reply(self, response: str) -> Reply:
        """See `User.reply`."""
        self._say("agent", response)
        reply = self._user.reply(response)
        if reply.sent is not None:
            self._say("sent instead", reply.sent)
        self._say("user", reply.text)
        return reply

    def outcome(self) -> Outcome:
        """See `User.outcome`."""
        return self._user.outcome()


class Table:
    """A policy and a chair for its user. `engine`: as `rollout.engine`; transformers starts fastest."""

    def __init__(self, settings: Settings, model: Path, engine: str) -> None:
        rollout = settings.rollout.model_copy(update={"engine": engine, "concurrency": 1})
        self._settings = settings
        self._environment = make(settings.environment.name, **settings.environment.options)
        self._chat = chat_format(str(model))
        self._engine = make_engine(str(model), self._chat.stop_ids, rollout, settings.model)
        self._limits = Limits(rollout.response_tokens, settings.model.context_length, rollout.temperature)

    def watch(self, index: int, say: Say) -> Conversation:
        """The policy with the simulated user of the `index`-th test context."""
        dialogue = self._dialogue(index)
        dialogue.user = Watched(dialogue.user, say)
        return self._hold(dialogue)

    def talk(self, index: int, ask: Callable[[], str], say: Say) -> Conversation:
        """The policy with a person, told what it is told in the `index`-th test context."""
        dialogue = self._dialogue(index)
        dialogue.user = Person(ask, say)
        say("system", dialogue.context.system)
        return self._hold(dialogue)

    def _dialogue(self, index: int) -> Dialogue:
        lease = Lease("test", index, 0, 0, derive_seed(self._settings.run.seed, "chat", index))
        return Dialogue(lease, self._environment, self._chat, self._limits)

    def _hold(self, dialogue: Dialogue) -> Conversation:
        opening = dialogue.user.opening()
        if not opening:
            return dialogue.finished(StopReason.USER_LEFT)
        request = dialogue.begin(opening)
        while request is not None:
            self._engine.submit(request)
            finished = self._engine.step()
            while not finished:
                finished = self._engine.step()
            request = dialogue.answer(dialogue.user.reply(dialogue.hear(finished[0])))
        return dialogue.finished()
