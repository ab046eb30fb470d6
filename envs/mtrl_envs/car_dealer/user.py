"""The buyer of `car_dealer`: a budget, a personality, wishes, and a price limit that the seller can raise.

1. The worth of a car to the buyer is `min(budget, list price) * fit`; fit is 1 if brand, type and features match.
2. The buyer's limit is this worth times its readiness, which starts low and rises when the seller asks, names a
   wanted feature of the car, or lowers the price. The personality sets start, steps, patience and truthfulness.
3. A price up to the limit is accepted. Above it the buyer makes a counter-offer, which never decreases, and loses
   patience. When its patience is almost used up it makes a final offer, then leaves.
4. Accepting the buyer's offer sells at that price. Each turn has its own generator, seeded by (context, seed, turn).
"""

import random
from dataclasses import dataclass
from typing import Any

from mtrl_envs.base import Outcome, Reply, User
from mtrl_envs.car_dealer.moves import Car, SellerMove, find_car, seller_move, thousands
from mtrl_ray.dialogue.conversation import StopReason


@dataclass(frozen=True)
class Personality:
    """`patience`: points until it leaves; `start`: first readiness; `step`: its rise; `truth`: stated / true budget;
    `tells`: probability to state the budget; `hint`: sentence in the opening.
    """

    patience: int
    start: float
    step: float
    truth: float
    tells: float
    hint: str


PERSONALITIES: dict[str, Personality] = {
    "friendly": Personality(6, 0.48, 0.12, 1.00, 0.95, "Nice day."),
    "impatient": Personality(4, 0.53, 0.16, 1.00, 0.90, "Be quick."),
    "stubborn": Personality(6, 0.38, 0.09, 0.80, 0.70, "I know cars."),
    "thrifty": Personality(6, 0.38, 0.10, 0.70, 0.80, "It must be cheap."),
    "generous": Personality(6, 0.53, 0.14, 1.00, 0.95, "Money is no problem."),
    "suspicious": Personality(5, 0.38, 0.11, 0.80, 0.40, "No tricks."),
    "chatty": Personality(7, 0.43, 0.11, 1.00, 0.90, "What a lovely shop."),
    "secretive": Personality(5, 0.43, 0.12, 0.90, 0.10, "Just a question."),
    "boastful": Personality(5, 0.48, 0.13, 1.25, 0.90, "Only the best for me."),
    "anxious": Personality(5, 0.43, 0.14, 0.90, 0.70, "I am a bit nervous."),
}

TALKERS = ("friendly", "chatty")
"""Personalities whose readiness rises after a friendly message."""

SAYINGS: dict[str, tuple[str, ...]] = {
    "open": ("Hi, I want a car.", "Hello, I need a new car."),
    "open_brand": ("Hi, do you have {a_brand}?", "Hello, I am looking for {a_brand}."),
    "open_type": ("Hi, I want {a_type}.", "Hello, I need {a_type}."),
    "open_both": ("Hi, I want {a_brand} {type}.", "Hello, do you have {a_brand} {type}?"),
    "wants": ("I want {a_brand} {type}.", "I am after {a_brand} {type}."),
    "features": ("I like {features}.", "It should have {features}."),
    "budget": ("About {stated}.", "My budget is {stated}.", "I have {stated}."),
    "silent": ("I do not want to say.", "That is my secret."),
    "counter": ("I can pay {counter}.", "My offer is {counter}.", "How about {counter}?"),
    "final": ("My final offer is {counter}.", "Last offer, {counter}."),
    "insulted": ("Far too much.", "Are you joking?"),
    "sold": ("Deal, {price} it is.", "Fine, I take it for {price}."),
    "wrong_car": ("That is not what I want.", "No, that is the wrong car."),
    "half_right": ("Not quite right. I can pay {counter}.", "It is not perfect. I can pay {counter}."),
    "which": ("Which car do you mean?", "For which car?"),
    "price": ("What does it cost?", "Sounds good. What is the price?"),
    "hello": ("Hello. Show me your cars.", "Hi. What do you have?"),
    "lost": ("I do not understand.", "What do you mean?"),
    "leave": ("I am leaving, bye.", "Forget it, bye."),
}


class Buyer(User):
    """A scripted buyer. `profile`: budget (dollars), personality, brand, type, features, opening, cars."""

    def __init__(self, key: str, profile: dict[str, Any]) -> None:
        self._key = key
        self._profile = profile
        self._nature = PERSONALITIES[profile["personality"]]
        self._cars = [Car.load(row) for row in profile["cars"]]
        self._turn = 0
        self._patience = self._nature.patience
        self._ready = self._nature.start
        self._pleased: set[str] = set()
        self._car: Car | None = None
        self._asked_price: float | None = None
        self._counter: float | None = None
        self._price: float | None = None
        self._tells_budget = random.Random(f"{key}/budget").random() < self._nature.tells
        self._rng = random.Random(f"{key}/0")

    def opening(self) -> str:
        """The first message, possibly with brand or type, and a hint of the personality."""
        return f"{self._say(self._profile['opening'])} {self._nature.hint}"

    def reply(self, response: str) -> Reply:
        """Answer the dealer; a sale gives price / 100,000 as the reward."""
        self._turn += 1
        self._rng = random.Random(f"{self._key}/{self._turn}")
        text = self._answer(seller_move(response))
        if self._price is not None:
            return Reply(text, reward=self._price / 1e5, stop=StopReason.OUTCOME)
        if self._patience <= 0:
            return Reply(self._say("leave"), stop=StopReason.USER_LEFT)
        return Reply(text)

    def redraw(self, seed: int) -> None:
        """See `User.redraw`."""
        self._key = f"{self._key}/{seed}"

    def outcome(self) -> Outcome:
        """Score: price / 100,000. Metrics: reward (price / 1,000), sold, price in dollars."""
        price = float(self._price or 0.0)
        return Outcome(price / 1e5, {"reward": price / 1000, "sold": float(self._price is not None), "price": price})

    def _answer(self, move: SellerMove) -> str:
        if move.hostile or (move.farewell and not move.accepts):
            self._patience -= 3
            return self._say("lost")
        if (move.brand or move.type) and (move.price is not None or not move.asks):
            found = find_car(self._cars, move.brand, move.type, self._car)
            if found is None or not self._interesting(found):
                self._patience -= 2
                return self._refuse_car()
            self._look_at(found)
        self._hear_praise(move)
        if move.price is not None:
            return self._consider(move.price)
        if move.accepts and self._counter is not None:
            return self._buy(self._counter)
        if move.asks:
            return self._inform(move.asks)
        return self._small_talk(move)

    def _small_talk(self, move: SellerMove) -> str:
        if (move.brand or move.type or move.praises) and self._car is not None:
            return self._bargain(self._car) if self._counter is not None else self._say("price")
        if move.greets and "hello" not in self._pleased:
            self._please("hello", 1.0 if self._profile["personality"] in TALKERS else 0.0)
            return self._say("hello")
        self._patience -= 1
        return self._say("lost")

    def _interesting(self, car: Car) -> bool:
        return car.brand == self._profile["brand"] or car.type == self._profile["type"]

    def _refuse_car(self) -> str:
        if self._rng.random() < 0.5:
            return self._say("wrong_car")
        return f"{self._say('wrong_car')} {self._say('wants')}"

    def _look_at(self, car: Car) -> None:
        if car != self._car:
            self._car, self._asked_price, self._counter = car, None, None

    def _hear_praise(self, move: SellerMove) -> None:
        if self._car is not None:
            for feature in move.praises:
                if feature in self._car.features and feature in self._profile["features"]:
                    self._please(feature, 1.0)

    def _consider(self, price: float) -> str:
        car = self._car
        if car is None:
            self._patience -= 1
            return self._say("which")
        if self._asked_price is not None:
            if price <= 0.99 * self._asked_price:
                self._ready = min(1.0, self._ready + self._nature.step)
            else:
                self._patience -= 1
        self._asked_price = price if self._asked_price is None else min(price, self._asked_price)
        if price <= max(self._limit(car), self._counter or 0.0):
            return self._buy(price)
        insulted = price > 1.35 * self._profile["budget"]
        self._patience -= 2 if insulted else 1
        return f"{self._say('insulted')} {self._bargain(car)}" if insulted else self._bargain(car)

    def _bargain(self, car: Car) -> str:
        """The counter-offer: a fraction of the current limit, never less than the previous offer."""
        offer = 1000 * int(self._limit(car) * self._rng.uniform(0.75, 0.92) / 1000)
        self._counter = max(offer, self._counter or 0.0, 1000.0)
        if self._patience == 1:
            return self._say("final")
        return self._say("counter" if self._fit(car) > 0.75 else "half_right")

    def _limit(self, car: Car) -> float:
        """The buyer's current price limit for a car, in dollars."""
        return min(self._profile["budget"], car.price) * self._fit(car) * self._ready

    def _fit(self, car: Car) -> float:
        profile = self._profile
        share = len(set(car.features) & set(profile["features"])) / len(profile["features"])
        return 0.25 + 0.3 * (car.brand == profile["brand"]) + 0.3 * (car.type == profile["type"]) + 0.15 * share

    def _buy(self, price: float) -> str:
        self._price = price
        return self._say("sold")

    def _inform(self, asks: tuple[str, ...]) -> str:
        topic = next((topic for topic in asks if topic not in self._pleased), asks[0])
        if topic in self._pleased:
            self._patience -= 1
        self._please(topic, 1.0)
        if topic == "budget" and not self._tells_budget:
            return self._say("silent")
        return self._say(topic)

    def _please(self, reason: str, steps: float) -> None:
        """Raise the readiness, once per reason."""
        if reason not in self._pleased:
            self._pleased.add(reason)
            self._ready = min(1.0, self._ready + steps * self._nature.step)

    def _say(self, saying: str) -> str:
        profile = self._profile
        return self._rng.choice(SAYINGS[saying]).format(
            a_brand=_with_article(profile["brand"]),
            a_type=_with_article(profile["type"]),
            type=profile["type"],
            features=" and ".join(profile["features"][:2]),
            stated=thousands(profile["budget"] * self._nature.truth),
            counter=thousands(self._counter or 0.0),
            price=thousands(self._price or 0.0),
        )


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'AEIO' or word == 'suv' else 'a'} {word}"
