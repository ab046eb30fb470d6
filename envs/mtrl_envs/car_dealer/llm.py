"""The buyer of `car_dealer` played by an LLM: its system prompt, and the check of its end marker.

The marker is `[END: bought PRICE]`; PRICE has to be named in the conversation and within the budget.
"""

from typing import Any

from mtrl_envs.base import Outcome
from mtrl_envs.car_dealer.moves import offered_price, thousands
from mtrl_envs.car_dealer.user import PERSONALITIES
from mtrl_envs.llm.user import END_RULES, Ending, LLMSettings, LLMUser, Role
from mtrl_envs.scripted import intents
from mtrl_ray.errors import DataError

NO_SALE = Outcome(0.0, {"reward": 0.0, "sold": 0.0, "price": 0.0})


def buyer(settings: LLMSettings, key: str, seed: int, profile: dict[str, Any]) -> LLMUser:
    """An LLM buyer."""

    def settle(ending: Ending, said: list[tuple[str, str]]) -> Outcome:
        return sale(ending, said, profile["budget"])

    return LLMUser(settings, Role(persona(profile), settle, NO_SALE), key, seed)


def persona(profile: dict[str, Any]) -> str:
    """The system prompt of a buyer."""
    nature = PERSONALITIES[profile["personality"]]
    stated = thousands(profile["budget"] * nature.truth)
    return (
        f"You are a {profile['personality']} person who wants to buy a {profile['brand']} {profile['type']} with "
        f"{' and '.join(profile['features'])}. You never pay more than {thousands(profile['budget'])}; if asked for "
        f"your budget you may say {stated}. You start low, bargain, and pay more only when the seller listens to your "
        "wishes, shows that the car has what you want, or comes down. "
        f"After {nature.patience} prices you find too high you leave. "
        + END_RULES.format(what="PRICE, for example $20k")
    )


def sale(ending: Ending, said: list[tuple[str, str]], budget: float) -> Outcome:
    """The outcome that an end marker states. Raises DataError for a price that was not named or is above the budget."""
    if not ending.bought:
        return NO_SALE
    price = offered_price(intents.clean(ending.detail))
    named = {_dollars(amount) for _, text in said for amount in intents.prices(intents.clean(text))}
    if price is None or price not in named or price > budget:
        raise DataError(
            f"the LLM buyer claims to have bought for {ending.detail!r}; prices named were {sorted(named)}, "
            f"and its budget is {budget:g}"
        )
    return Outcome(price / 1e5, {"reward": price / 1000, "sold": 1.0, "price": price})


def _dollars(amount: float) -> float:
    return amount * 1000 if amount < 200 else amount
