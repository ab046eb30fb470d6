"""`car_dealer`: an agent sells cars to a buyer who bargains; the outcome is the price (LMRL-Gym; 2405.14655 §6).

1. The buyer has a budget of $10k to $90k, one of ten personalities, a wanted brand and type, and one to four wanted
   features of eight. Four cars are in stock, listed with their prices in the system prompt; one of them fits.
2. A sale gives price / 100,000 as the reward on arrival and ends the conversation; the score is the same number.
   Metrics: `reward` (price / 1,000, the benchmark's own scale), `sold`, `price`.
3. Preferences between two conversations with the same buyer are Bradley-Terry on the reward.
4. The price that sells at once (`greedy`) is far below the price that a buyer pays after questions, a matching car and
   concessions (`expert`).
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mtrl_envs.base import Agent, Context, Environment, Probe, User
from mtrl_envs.car_dealer.agents import DealerAgent, probe
from mtrl_envs.car_dealer.llm import buyer as llm_buyer
from mtrl_envs.car_dealer.moves import BRANDS, FEATURES, TYPES, Car, seller_move, thousands
from mtrl_envs.car_dealer.user import PERSONALITIES, Buyer
from mtrl_envs.llm.options import user_kind
from mtrl_envs.preferences import Kind, Noise, bradley_terry, check_pair, identity, probability
from mtrl_envs.scripted.intents import clean, template_markers
from mtrl_envs.scripted.options import positive
from mtrl_envs.scripted.splits import Profile, draw
from mtrl_ray.dialogue.conversation import Conversation, Role
from mtrl_ray.errors import DataError

LONGEST_RESPONSE = 60
"""Longest well-formed response, in words."""


class CarDealer(Environment):
    """A car dealer and a buyer.

    Options: `user` ("scripted" or "llm") and `llm` (settings of `mtrl_envs.llm.user.LLMSettings`); of the preferences,
    `preference_scale` (thousands of dollars that change the log-odds by 1), `preference_noise`,
    `preference_noise_kind` and `preference_seed` (see `mtrl_envs.preferences.Noise`).
    Raises ConfigurationError for invalid values.
    """

    name: ClassVar[str] = "car_dealer"
    max_turns: ClassVar[int] = 10
    warm_start: ClassVar[dict[str, float]] = {"expert": 0.4, "greedy": 0.45, "random": 0.15}

    def __init__(
        self,
        *,
        user: str = "scripted",
        llm: Mapping[str, Any] | None = None,
        preference_scale: float = 10.0,
        preference_noise: float = 0.0,
        preference_noise_kind: Kind = "expected",
        preference_seed: int = 0,
    ) -> None:
        self._llm = user_kind(self.name, user, llm)
        self._scale = positive(self.name, "preference_scale", preference_scale)
        self._noise = Noise.parse(self.name, preference_noise, preference_noise_kind, preference_seed)

    def context(self, split: str, index: int) -> Context:
        """The `index`-th buyer and stock of a split."""
        profile = draw(self.name, split, index, sample_profile)
        stock = ", ".join(_listed(Car.load(row)) for row in profile["cars"])
        return Context(f"{split}-{index}", split, index, f"Sell a car at a high price: {stock}.", profile)

    def user(self, context: Context, seed: int) -> User:
        """The buyer."""
        key = f"car_dealer/{context.id}/{seed}"
        if self._llm is not None:
            return llm_buyer(self._llm, key, seed, context.hidden)
        return Buyer(key, context.hidden)

    def agent(self, name: str, seed: int) -> Agent:
        """The scripted agent `expert`, `greedy` or `random`. KeyError for another name."""
        return DealerAgent(name, seed)

    def probe(self, history: Sequence[tuple[Role, str]]) -> Probe | None:
        """See `agents.probe`."""
        return probe(history)

    def well_formed(self, response: str) -> bool:
        """Whether a response has at least one intent, no template markup, and at most `LONGEST_RESPONSE` words."""
        short = len(clean(response).split()) <= LONGEST_RESPONSE
        return short and not template_markers(response) and seller_move(response).understood

    def prefer(self, first: Conversation, second: Conversation) -> float:
        """P(first ≻ second) = σ((reward of first − reward of second) / `preference_scale`)."""
        check_pair(self.name, first, second)
        margin = bradley_terry((reward(first) - reward(second)) / self._scale)
        return probability(self._noise.apply(margin, identity(first), identity(second)))


def reward(conversation: Conversation) -> float:
    """Price / 1,000; 0 without a sale. Raises DataError if the conversation's metrics lack it."""
    if "reward" not in conversation.metrics:
        raise DataError(f"conversation {conversation.id!r} has no metric 'reward', which car_dealer needs to compare")
    return conversation.metrics["reward"]


def sample_profile(rng: random.Random) -> Profile:
    """A random buyer, and the cars in stock; prices in dollars."""
    budget = 1000 * rng.randint(10, 90)
    brand, kind = rng.choice(BRANDS), rng.choice(list(TYPES))
    features = rng.sample(list(FEATURES), rng.randint(1, 4))
    return {
        "budget": budget,
        "personality": rng.choice(list(PERSONALITIES)),
        "brand": brand,
        "type": kind,
        "features": features,
        "opening": rng.choice(["open", "open", "open_brand", "open_type", "open_both"]),
        "cars": [car.row() for car in _stock(rng, budget, brand, kind, features)],
    }


def _stock(rng: random.Random, budget: int, brand: str, kind: str, features: list[str]) -> list[Car]:
    """Four cars in random order: the matching one, one of the same brand, one of the same type, one that shares neither."""
    brands = rng.sample([name for name in BRANDS if name != brand], 2)
    kinds = rng.sample([name for name in TYPES if name != kind], 2)
    wanted = rng.sample(features, min(2, len(features)))
    other = rng.choice([name for name in FEATURES if name not in features])
    fit_price = min(99, max(8, round(budget / 1000 * rng.uniform(0.9, 1.25))))
    cars = [Car(brand, kind, tuple(wanted) if len(wanted) == 2 else (wanted[0], other), 1000 * fit_price)]
    for name, type_ in ((brand, kinds[0]), (brands[0], kind), (brands[1], kinds[1])):
        cars.append(Car(name, type_, tuple(rng.sample(list(FEATURES), 2)), 1000 * rng.randint(8, 99)))
    rng.shuffle(cars)
    return cars


def _listed(car: Car) -> str:
    return f"{car} {thousands(car.price)} {' '.join(car.features)}"
