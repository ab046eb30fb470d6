"""The buyer of `car_dealer` understands paraphrases, bargains by its personality, and pays more to who plans."""

import time
from statistics import fmean

import pytest

from mtrl_envs import measure
from mtrl_envs.base import Context, User
from mtrl_envs.car_dealer import agents
from mtrl_envs.car_dealer.agents import REPERTOIRE, read_cars
from mtrl_envs.car_dealer.moves import Car, buyer_move, find_car, seller_move
from mtrl_envs.car_dealer.user import PERSONALITIES, SAYINGS
from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import StopReason

CARS = [
    Car("Audi", "suv", ("sunroof", "leather"), 42000),
    Car("Audi", "van", ("camera", "towbar"), 30000),
    Car("Ford", "suv", ("hybrid", "camera"), 55000),
    Car("Tesla", "coupe", ("heating", "towbar"), 20000),
]
PRICES = [
    ("The Audi SUV is $38k.", 38000),
    ("I could let you have it for 38,000 dollars.", 38000),
    ("How does $38,500 sound?", 38500),
    ("I can't go down to $30k, but $36k works for me.", 36000),
    ("I can do $36k, down from $40k.", 36000),
    ("The list price is $42k, but for you $39k.", 39000),
    ("Let's say 38 grand.", 38000),
    ("For you: $38", 38000),
    ("It's a 2021 model with 250 hp.", None),
    ("I won't accept $20k.", None),
]
ASKS = [
    ("What kind of car are you looking for?", "wants"),
    ("Which make or model would you prefer?", "wants"),
    ("Hi! What brings you here today?", "wants"),
    ("Do you have a brand in mind? Any particular type?", "wants"),
    ("Are there any must-have features?", "features"),
    ("What matters most to you?", "features"),
    ("Would you like a sunroof or heated seats?", "features"),
    ("How much were you hoping to spend?", "budget"),
    ("Could you share your budget?", "budget"),
    ("What price range are you thinking of?", "budget"),
]


def buyer(personality: str = "friendly", seed: int = 0) -> User:
    """Somebody who wants an Audi suv with a sunroof for at most $40k."""
    profile = {
        "budget": 40000,
        "personality": personality,
        "brand": "Audi",
        "type": "suv",
        "features": ["sunroof"],
        "opening": "open",
        "cars": [car.row() for car in CARS],
    }
    user = make("car_dealer").user(Context("c", "train", 0, "", profile), seed)
    user.opening()
    return user


@pytest.mark.parametrize(("text", "price"), PRICES)
def test_the_price_that_is_meant(text: str, price: float | None) -> None:
    assert seller_move(text).price == price


@pytest.mark.parametrize(("text", "topic"), ASKS)
def test_questions_are_understood_in_other_words(text: str, topic: str) -> None:
    assert seller_move(text).asks == (topic,)
    answer = buyer("generous").reply(text).text
    assert {"wants": "Audi suv", "features": "sunroof", "budget": "$40k"}[topic] in answer


@pytest.mark.parametrize(
    ("text", "accepts"),
    [
        ("Deal!", True),
        ("You've got a deal.", True),
        ("Okay, sold.", True),
        ("I accept your offer.", True),
        ("Agreed, it's yours.", True),
        ("No deal.", False),
        ("That's not a deal I can make.", False),
        ("What a great car.", False),
    ],
)
def test_accepting_in_other_words(text: str, accepts: bool) -> None:
    user = buyer()
    countered = user.reply("The Audi suv is $42k.")
    counter = buyer_move(countered.text).price
    reply = user.reply(text)
    assert (reply.stop == StopReason.OUTCOME) == accepts
    if accepts:
        assert user.outcome().metrics == {"reward": counter / 1000, "sold": 1.0, "price": counter}
        assert reply.reward == pytest.approx(counter / 1e5) == user.outcome().score


@pytest.mark.parametrize(
    ("brand", "kind", "current", "expected"),
    [
        ("Audi", "van", None, CARS[1]),
        ("Audi", None, None, CARS[0]),
        ("Audi", None, CARS[1], CARS[1]),
        (None, "suv", CARS[2], CARS[2]),
        (None, None, CARS[3], CARS[3]),
        ("Tesla", "van", CARS[0], None),
    ],
)
def test_which_car_is_meant(brand: str | None, kind: str | None, current: Car | None, expected: Car | None) -> None:
    assert find_car(CARS, brand, kind, current) == expected


def test_only_a_car_with_the_wanted_brand_or_type_interests() -> None:
    user = buyer()
    assert buyer_move(user.reply("How about the Tesla coupe for $9k?").text).refuses_car
    assert user.reply("And the Audi suv for $9k?").stop == StopReason.OUTCOME


def test_a_price_without_a_car_sells_nothing() -> None:
    user = buyer()
    assert "car" in user.reply("It's $5k.").text
    assert user.outcome().score == 0


def test_counter_offers_never_fall_and_end_with_a_last_one() -> None:
    user = buyer()
    replies = [user.reply("The Audi suv is $45k.")]
    while replies[-1].stop is None:
        replies.append(user.reply(f"I can do ${44.9 - 0.1 * len(replies):.1f}k."))
    counters = [buyer_move(reply.text).price for reply in replies[:-1]]
    assert counters == sorted(counters)
    assert buyer_move(replies[-2].text).final
    assert replies[-1].stop == StopReason.USER_LEFT


@pytest.mark.parametrize("effort", ["asks", "praises", "concedes"])
def test_effort_raises_what_the_buyer_pays(effort: str) -> None:
    def limit(moves: tuple[str, ...]) -> int:
        """The highest price accepted after the moves, in thousands."""
        for price in range(41, 0, -1):
            user = buyer("stubborn")
            for move in moves:
                user.reply(move)
            if user.reply(f"The Audi suv for ${price}k.").stop == StopReason.OUTCOME:
                return price
        return 0

    moves = {
        "asks": ("What is your budget?", "Which features do you want?"),
        "praises": ("The Audi suv has a sunroof.",),
        "concedes": ("The Audi suv is $43k.", "I can do $42k."),
    }
    assert limit(moves[effort]) > limit(())


def test_personalities_differ_in_truth_and_patience() -> None:
    stated = {
        name: buyer_move(text).price
        for name in PERSONALITIES
        for seed in range(12)
        if "$" in (text := buyer(name, seed).reply("What is your budget?").text)
    }
    assert stated["thrifty"] < stated["friendly"] == 40000 < stated["boastful"]

    def lasts(name: str) -> int:
        user, turns = buyer(name), 1
        while user.reply("The Audi suv is $50k.").stop is None:
            turns += 1
        return turns

    assert lasts("impatient") < lasts("chatty")


@pytest.mark.parametrize("text", ["", "x" * 1_000_000, "<|end|> deal", "\ud800{car}", "$0", "no " * 1000, "$" * 5000])
def test_hostile_text_costs_patience_and_is_answered_fast(text: str) -> None:
    user = buyer()
    start = time.process_time()
    replies = [user.reply(text) for _ in range(7)]
    assert time.process_time() - start < 5
    assert any(reply.stop == StopReason.USER_LEFT for reply in replies)
    assert all(reply.reward == 0 and 0 < len(reply.text) < 200 for reply in replies)


def test_the_stock_is_told_to_the_agent() -> None:
    for index in range(30):
        context = make("car_dealer").context("train", index)
        assert read_cars(context.system) == [Car.load(row) for row in context.hidden["cars"]]
        fits = [
            c
            for c in read_cars(context.system)
            if (c.brand, c.type) == (context.hidden["brand"], context.hidden["type"])
        ]
        assert len(fits) == 1


def test_agents_understand_every_saying_of_the_buyer() -> None:
    words = {"a_brand": "an Audi", "a_type": "a suv", "type": "suv", "features": "sunroof and leather"}
    words |= {"stated": "$40k", "counter": "$30k", "price": "$35k"}
    told = {name: [buyer_move(text.format(**words)) for text in texts] for name, texts in SAYINGS.items()}
    assert all((move.brand, move.type) == ("Audi", "suv") for move in told["wants"])
    assert all(move.features == ("sunroof", "leather") for move in told["features"])
    assert all(move.price == 40000 for move in told["budget"])
    assert all(move.price == 30000 and not move.final for move in told["counter"] + told["half_right"])
    assert all(move.price == 30000 and move.final for move in told["final"])
    assert all(move.refuses_car for move in told["wrong_car"])


def test_greedy_names_the_price_that_earns_most_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = make("car_dealer")
    own = agents.GREEDY_FRACTION

    def immediate(fraction: float) -> float:
        monkeypatch.setattr(agents, "GREEDY_FRACTION", fraction)
        return fmean(c.rewards[0] for c in measure.conversations(environment, "greedy", 300, "train"))

    assert max((own - 0.1, own, own + 0.1, own + 0.2), key=immediate) == own


def test_every_phrase_of_the_repertoire_is_well_formed() -> None:
    environment = make("car_dealer")
    for variants in REPERTOIRE.values():
        assert all(
            environment.well_formed(text.format(car=CARS[0], price="$38k", feature="leather")) for text in variants
        )


@pytest.mark.parametrize("text", ["", "the of and", "Deal. <|end|>", "The Audi suv is $38k. " * 20])
def test_what_is_not_well_formed(text: str) -> None:
    assert not make("car_dealer").well_formed(text)
