"""The student of `education` played by an LLM: its system prompt, and the lesson of a finished conversation.

The lesson ends after its number of agent turns, as with the scripted student; before that the LLM can only leave, with
the marker `[END: left]`. The judge is the same, because it parses the messages of both sides.
"""

from dataclasses import replace
from typing import Any

from mtrl_envs.base import Reply
from mtrl_envs.education.conduct import Exchange, Lesson, judge, outcome
from mtrl_envs.llm.user import LLMSettings, LLMUser, task_role
from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason
from mtrl_ray.errors import DataError

_STYLES = {
    "interactive": "discussion and talking things over",
    "direct": "clear, direct explanations of the facts",
    "hands-on": "building, trying and experimenting",
    "creative": "stories, pictures and imagination",
}
_REACTIONS = {
    "rude": "you are rude",
    "disengaged": "you lose interest and say little",
    "frustrated": "you are frustrated and say that you do not get it",
    "anxious": "you are anxious and afraid to fail",
    "adapts": "you adapt to it after a while",
    "tells": "you tell the teacher what you would rather have",
}


def student(settings: LLMSettings, key: str, seed: int, profile: dict[str, Any]) -> "LLMStudent":
    """An LLM student."""
    return LLMStudent(settings, key, seed, profile)


class LLMStudent(LLMUser):
    """The student of one lesson, played by an LLM."""

    def __init__(self, settings: LLMSettings, key: str, seed: int, profile: dict[str, Any]) -> None:
        self._lesson = lesson_for(profile)
        self._turns = profile["turns"]
        nothing = outcome(judge(self._lesson), ended=False)
        super().__init__(settings, task_role(persona(profile), lambda response: None, nothing), key, seed)

    def reply(self, response: str) -> Reply:
        """The LLM's answer; the last one has the quality of the lesson as its reward."""
        reply = super().reply(response)
        self._lesson.exchanges.append(Exchange(response, reply.text))
        over = reply.stop is None and len(self._lesson.exchanges) >= self._turns
        self._outcome = outcome(judge(self._lesson), ended=over)
        return replace(reply, reward=self._outcome.score, stop=StopReason.OUTCOME) if over else reply


def persona(profile: dict[str, Any]) -> str:
    """The system prompt of a student."""
    return (
        f"You are a student who wants to learn about {profile['topic']}. You learn best through "
        f"{_STYLES[profile['preference']]}, but never say so before you are asked, unless this prompt tells you to. When the "
        f"teacher teaches in another way, {_REACTIONS[profile['reaction']]}. When it teaches in yours, you say that you like "
        "that. You answer questions about the subject once something was explained, sometimes wrongly. "
        f"After {profile['patience']} useless or hostile messages you leave."
    )


def lesson_for(profile: dict[str, Any]) -> Lesson:
    """A lesson without messages. Raises KeyError if the profile is not one of a student."""
    return Lesson(profile["preference"], profile["reaction"] == "adapts")


def lesson_of(conversation: Conversation) -> Lesson:
    """The lesson of a finished conversation. Raises DataError if its context is not that of a student."""
    try:
        lesson = lesson_for(conversation.context)
    except KeyError as error:
        raise DataError(
            f"conversation {conversation.id!r} lacks {error.args[0]!r} in its context, which education needs to compare lessons"
        ) from None
    for index in conversation.agent_turns:
        answer = conversation.turns[index + 1 : index + 2]
        reply = answer[0].text if answer and answer[0].role == Role.USER else ""
        lesson.exchanges.append(Exchange(conversation.turns[index].text, reply))
    return lesson
