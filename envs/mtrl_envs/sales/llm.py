"""The customer of `sales` played by an LLM: its system prompt, and the check of its end marker.

The marker is `[END: bought NAME]`; NAME has to be a product that was offered in the conversation.
"""

from typing import Any

from mtrl_envs.base import Outcome
from mtrl_envs.llm.user import END_RULES, Ending, LLMSettings, LLMUser, Role
from mtrl_envs.sales.moves import CATALOGUE
from mtrl_envs.sales.user import Business
from mtrl_envs.scripted import intents
from mtrl_ray.errors import DataError

_WORRIES = {
    "none": "You have no particular worry.",
    "price": "You find most things overpriced: you want a discount, or a good reason for the price.",
    "quality": "You fear that things break: you want a guarantee or the right to return it.",
}
_MANNERS = {True: "You like to talk.", False: "You say little."}


def customer(settings: LLMSettings, key: str, seed: int, profile: dict[str, Any], business: Business) -> LLMUser:
    """An LLM customer behind the same business as the scripted one."""
    role = Role(persona(profile), settle, Outcome(0.0, {"sold": 0.0}), business.deliver)
    return LLMUser(settings, role, key, seed)


def persona(profile: dict[str, Any]) -> str:
    """The system prompt of a customer."""
    return (
        f"You are a customer in a shop. You need a {profile['kind']} for {profile['use']}; you can spend at most "
        f"${profile['budget']}, and want the best that this allows. You start vague, and tell your needs and budget "
        f"only when asked. {_WORRIES[profile['worry']]} {_MANNERS[bool(profile['talkative'])]} You buy as soon as you "
        "are offered a product that fits and your worry is settled. "
        f"After {profile['patience']} unhelpful messages you leave. " + END_RULES.format(what="NAME OF THE PRODUCT")
    )


def settle(ending: Ending, said: list[tuple[str, str]]) -> Outcome:
    """The outcome that an end marker states. Raises DataError for a product that was never offered."""
    if not ending.bought:
        return Outcome(0.0, {"sold": 0.0})
    bought = intents.names(intents.clean(ending.detail), CATALOGUE)
    offered = {name for role, text in said if role == "user" for name in intents.names(intents.clean(text), CATALOGUE)}
    if len(bought) != 1 or bought[0] not in offered:
        raise DataError(
            f"the LLM customer claims to have bought {ending.detail!r}; it was offered {sorted(offered) or 'nothing'}"
        )
    return Outcome(1.0, {"sold": 1.0})
