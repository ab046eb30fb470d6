"""`letters` with an oracle: the conversation with more of the letter "e" is preferred, the longer the clearer."""

from mtrl_envs.preferences import bradley_terry, check_pair, probability
from mtrl_ray.dialogue.conversation import Conversation, Role
from tests.support.letters import Letters


class RivalLetters(Letters):
    """See the module's docstring."""

    name = "rival_letters"

    def prefer(self, first: Conversation, second: Conversation) -> float:
        check_pair(self.name, first, second)
        return probability(bradley_terry(0.5 * (count(first) - count(second))))


def count(conversation: Conversation) -> int:
    """How often the agent wrote the letter."""
    return sum(turn.text.count("e") for turn in conversation.turns if turn.role == Role.AGENT)
