"""Scripted agents of `car_dealer`: they see what the policy sees and draw their phrasings from a seed.

1. `expert` asks for wishes, features and budget, offers the matching car at its list price, names a wanted feature,
   lowers the price in small steps, and accepts the buyer's offer if it is close or final.
2. `greedy` maximises the expected reward of the current turn: it offers at once the price that an unknown buyer would
   accept now, and accepts any counter-offer.
3. `random` makes a random move.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from mtrl_envs.base import Probe
from mtrl_envs.car_dealer.moves import Car, buyer_move, find_car, seller_move, thousands
from mtrl_ray.dialogue.conversation import Role

GREEDY_FRACTION = 0.3
"""Fraction of the list price with the highest expected immediate reward as a first offer (measured)."""

CONCESSION = 0.93
"""Ratio of the expert's next price to its last."""

CLOSE_ENOUGH = 0.94
"""The expert accepts a counter-offer of at least this fraction of its next price."""

LAST_TURN = 9
"""Agent turns after which the expert accepts any offer; the conversation ends at ten."""

REPERTOIRE: dict[str, tuple[str, ...]] = {
    "wants": ("What car do you want?", "What are you looking for?", "Which brand and type do you like?"),
    "features": ("Which features matter to you?", "What features do you need?", "Any special features?"),
    "budget": ("What is your budget?", "How much do you want to spend?", "What can you spend?"),
    "offer": ("The {car} is {price}.", "I have the {car} for {price}.", "How about the {car} at {price}?"),
    "concede": ("I can do {price}.", "For you, {price}.", "Let us say {price}."),
    "praise": ("It has {feature}.", "You get {feature} too."),
    "accept": ("Deal.", "Agreed, we have a deal.", "Sold."),
    "hello": ("Hello, welcome.", "Hi, nice to meet you."),
}
"""Phrasings of each move."""

_LISTED = re.compile(r"(?P<brand>\w+) (?P<type>\w+) \$(?P<price>\d+)k(?P<features>[\w ]*)")


def read_cars(system: str) -> list[Car]:
    """The cars listed in a system prompt."""
    return [
        Car(match["brand"], match["type"], tuple(match["features"].split()), int(match["price"]) * 1000)
        for match in _LISTED.finditer(system)
    ]


@dataclass
class Known:
    """What is known from the history: stock, wishes, the stated budget, the car and the prices under discussion."""

    cars: list[Car] = field(default_factory=list)
    brand: str | None = None
    type: str | None = None
    features: tuple[str, ...] = ()
    budget: float | None = None
    asked: set[str] = field(default_factory=set)
    praised: set[str] = field(default_factory=set)
    rejected: list[Car] = field(default_factory=list)
    car: Car | None = None
    own_price: float | None = None
    counter: float | None = None
    final: bool = False
    turns: int = 0

    def best_cars(self) -> list[Car]:
        """The cars that match the most known wishes; never empty."""
        fresh = [car for car in self.cars if car not in self.rejected] or self.cars
        points = [
            3 * (car.brand == self.brand) + 3 * (car.type == self.type) + len(set(car.features) & set(self.features))
            for car in fresh
        ]
        return [car for car, point in zip(fresh, points, strict=True) if point == max(points)]


def known(history: Sequence[tuple[Role, str]]) -> Known:
    """What is known after the whole history."""
    state = Known()
    for role, text in history:
        if role == Role.SYSTEM:
            state.cars = read_cars(text)
        elif role == Role.AGENT:
            state.turns += 1
            _read_agent(state, text)
        else:
            _read_buyer(state, text)
    return state


def _read_agent(state: Known, text: str) -> None:
    move = seller_move(text)
    state.asked.update(move.asks)
    state.praised.update(move.praises)
    if move.price is not None:
        found = find_car(state.cars, move.brand, move.type, state.car)
        if found != state.car:
            state.car, state.counter = found, None
        state.own_price = move.price


def _read_buyer(state: Known, text: str) -> None:
    told = buyer_move(text)
    state.brand, state.type = told.brand or state.brand, told.type or state.type
    state.features = told.features or state.features
    if told.refuses_car and state.car is not None:
        state.rejected.append(state.car)
        state.car = state.own_price = state.counter = None
    elif told.price is not None and state.own_price is None:
        state.budget = told.price
    elif told.price is not None:
        state.counter, state.final = told.price, told.final


def probe(history: Sequence[tuple[Role, str]]) -> Probe | None:
    """If the buyer has told brand and type and got no offer: the car of the stock that is both, and one that is one of them."""
    state = known(history)
    if None in (state.brand, state.type) or state.own_price is not None or state.rejected:
        return None
    right = [car for car in state.cars if (car.brand, car.type) == (state.brand, state.type)]
    wrong = [car for car in state.cars if (car.brand == state.brand) != (car.type == state.type)]
    if len(right) != 1 or not wrong:
        return None
    words = REPERTOIRE["offer"][state.turns % len(REPERTOIRE["offer"])]
    return Probe(*(words.format(car=car, price=thousands(car.price)) for car in (right[0], wrong[0])))


class DealerAgent:
    """A scripted agent: `expert`, `greedy` or `random`."""

    def __init__(self, name: str, seed: int) -> None:
        self._act = {"expert": self._expert, "greedy": self._greedy, "random": self._random}[name]
        self._rng = random.Random(f"car_dealer/{name}/{seed}")

    def respond(self, history: Sequence[tuple[Role, str]]) -> str:
        """The next response."""
        return self._act(known(history))

    def _expert(self, state: Known) -> str:
        if state.own_price is None:
            return self._ask(state) or self._offer(state)
        following = max(CONCESSION * state.own_price, state.counter or 0.0)
        close = state.counter is not None and state.counter >= CLOSE_ENOUGH * following
        if state.counter is not None and (close or state.final or state.turns >= LAST_TURN):
            return self._say("accept")
        return self._say("concede", price=thousands(following)) + self._praise(state)

    def _ask(self, state: Known) -> str | None:
        missing = {
            "wants": state.brand is None or state.type is None,
            "features": not state.features,
            "budget": state.budget is None,
        }
        topic = next((topic for topic, open_ in missing.items() if open_ and topic not in state.asked), None)
        return None if topic is None else self._say(topic)

    def _offer(self, state: Known) -> str:
        state.car = self._rng.choice(state.best_cars())
        price: float = state.car.price
        if state.budget is not None:
            price = min(price, max(1.2 * state.budget, 0.7 * price))
        return self._say("offer", car=state.car, price=thousands(price)) + self._praise(state)

    def _praise(self, state: Known) -> str:
        """A sentence on a wanted feature of the car that was not named yet, or an empty string."""
        if state.car is None:
            return ""
        left = [feature for feature in state.car.features if feature in state.features and feature not in state.praised]
        return " " + self._say("praise", feature=left[0]) if left else ""

    def _greedy(self, state: Known) -> str:
        if state.counter is not None:
            return self._say("accept")
        car = self._rng.choice(state.best_cars())
        return self._say("offer", car=car, price=thousands(GREEDY_FRACTION * car.price))

    def _random(self, state: Known) -> str:
        move = self._rng.choice(
            ["wants", "features", "budget", "offer", "offer", "concede", "praise", "accept", "hello"]
        )
        car = self._rng.choice(state.cars)
        price = thousands(self._rng.uniform(0.3, 1.3) * (state.own_price or car.price))
        return self._say(move, car=car, price=price, feature=self._rng.choice(car.features))

    def _say(self, move: str, **words: object) -> str:
        return self._rng.choice(REPERTOIRE[move]).format(**words)
