"""The cars of `car_dealer`, and parsers for the messages of both sides.

1. A car is named by brand, type, or both; a price by an amount ("$38k", "38,000"; "$38" means $38,000).
2. `seller_move` parses a dealer's message: the car, its price, the features it names, the questions.
3. `buyer_move` parses a buyer's message. Both accept free text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mtrl_envs.scripted import intents
from mtrl_envs.scripted.intents import phrases

BRANDS = ("Toyota", "Honda", "Audi", "Ford", "Volvo", "Tesla")
TYPES = {
    "suv": phrases(r"suvs?\b", r"sport utility\b", r"crossover\b"),
    "sedan": phrases(r"sedans?\b", r"saloon\b"),
    "coupe": phrases(r"coupes?\b", r"coupé\b", r"sports car\b"),
    "truck": phrases(r"trucks?\b", r"pick-?up( truck)?\b"),
    "van": phrases(r"(mini)?vans?\b"),
}
FEATURES = {
    "sunroof": phrases(r"sunroofs?\b", r"sun roof\b", r"panoram(a|ic)"),
    "leather": phrases(r"leather\b"),
    "camera": phrases(r"cameras?\b"),
    "navigation": phrases(r"navigation\b", r"gps\b", r"sat-?nav\b"),
    "towbar": phrases(r"tow ?bar\b", r"towing\b", r"tow\b"),
    "hybrid": phrases(r"hybrid\b"),
    "heating": phrases(r"heating\b", r"heated\b"),
    "bluetooth": phrases(r"bluetooth\b"),
}

ASK_WANTS = phrases(
    r"(what|which|what kind of|what type of|what sort of|any particular) (car|vehicle|brand|make|model|type|kind)",
    r"what (are|were) you (looking|shopping|searching|hoping|after|interested)",
    r"what (do|would|did|can|could) (you|i|we) (need|want|like|help|do for|have in mind)",
    r"(how|what) (can|may|could) (i|we) (help|do for|assist)",
    r"(looking|searching|shopping) for\b",
    r"(brand|make|type|kind) (do|would|are)",
    r"what (brings|brought) you",
    r"prefer",
)
ASK_FEATURES = phrases(
    r"(features?|extras?|equipment|options)\b", r"must-?haves?\b", r"matters? (most|to you)\b", r"important to you\b"
)
ASK_BUDGET = phrases(
    r"budget\b",
    r"(spend|spending|afford|invest)\b",
    r"price (range|point|limit)\b",
    r"how much (can|could|would|do|did|are|were|money)",
    r"(like|want|able|willing|prepared|hoping|looking|planning) to (pay|spend)\b",
)
ACCEPT = phrases(
    r"deal\b(?! with)",
    r"(agreed|sold)\b",
    r"(i|we) (accept|agree)\b",
    r"(it|the car)('s| is) yours\b",
    r"(you've got|you have|we have) a deal\b",
    r"shake (hands )?on (it|that)\b",
)
LAST_OFFER = phrases(r"(final|last) (offer|price)\b", r"take it or leave it\b")
_NOT_OFFERED = re.compile(
    r"((can't|cannot|can not|won't|couldn't|not) [a-z' ]{0,24}|instead of |down from |rather than "
    r"|list(ed)?( price)?( is| at| of)? |sticker( price)?( is| of)? |was |worth |than )(at |for |the )?$"
)
_NO_DEAL = re.compile(r"\b(no|not a|isn't a|not) (deal|agreed)\b")


@dataclass(frozen=True)
class Car:
    """One car in stock; `price` is its list price in dollars."""

    brand: str
    type: str
    features: tuple[str, ...]
    price: int

    @classmethod
    def load(cls, row: Mapping[str, Any]) -> "Car":
        """A car from its JSON form."""
        return cls(row["brand"], row["type"], tuple(row["features"]), row["price"])

    def row(self) -> dict[str, Any]:
        """The JSON form."""
        return {**asdict(self), "features": list(self.features)}

    def __str__(self) -> str:
        return f"{self.brand} {self.type}"


def thousands(price: float) -> str:
    """A price in the scripted users' format: `$38k`."""
    return f"${round(price / 1000)}k"


@dataclass(frozen=True)
class SellerMove:
    """A parsed dealer's message. `asks`: any of wants, features, budget; `price`: dollars."""

    asks: tuple[str, ...]
    brand: str | None
    type: str | None
    price: float | None
    praises: tuple[str, ...]
    accepts: bool
    greets: bool
    farewell: bool
    hostile: bool

    @property
    def understood(self) -> bool:
        """Whether the message has at least one intent."""
        flags = (self.accepts, self.greets, self.farewell, self.hostile, self.price is not None)
        return bool(self.asks or self.brand or self.type or self.praises) or any(flags)


def seller_move(message: str) -> SellerMove:
    """Parse a dealer's message into its intents."""
    text = intents.clean(message)
    parts = intents.sentences(text)
    brands = intents.names(text, BRANDS)
    statements = " ".join(part for part in parts if "?" not in part or intents.prices(part))
    return SellerMove(
        asks=tuple(topic for topic in ("features", "budget", "wants") if any(_asks(part, topic) for part in parts)),
        brand=brands[0] if brands else None,
        type=next(iter(_mentioned(text, TYPES)), None),
        price=offered_price(text),
        praises=tuple(_mentioned(statements, FEATURES)),
        accepts=intents.says(text, ACCEPT) and not _NO_DEAL.search(text),
        greets=intents.says(text, intents.GREETING),
        farewell=intents.says(text, intents.FAREWELL),
        hostile=intents.says(text, intents.REFUSAL, intents.INSULT),
    )


def offered_price(text: str) -> float | None:
    """The price that cleaned text proposes, in dollars: the last amount that is not excluded ("down from $40k")."""
    meant = [
        amount
        for at, amount in intents.price_spans(text)
        if amount > 0 and not _NOT_OFFERED.search(text[max(0, at - 40) : at])
    ]
    if not meant:
        return None
    return meant[-1] * 1000 if meant[-1] < 200 else meant[-1]


def find_car(cars: Sequence[Car], brand: str | None, kind: str | None, current: Car | None) -> Car | None:
    """The car in stock with a brand and a type; if several match, the one under discussion, otherwise the first."""
    matching = [car for car in cars if brand in (None, car.brand) and kind in (None, car.type)]
    if brand is None and kind is None:
        return current
    return current if current in matching else next(iter(matching), None)


def _asks(sentence: str, topic: str) -> bool:
    if not intents.is_question(sentence):
        return False
    budget = intents.says(sentence, ASK_BUDGET)
    features = intents.says(sentence, ASK_FEATURES) or ("?" in sentence and bool(_mentioned(sentence, FEATURES)))
    if topic == "budget":
        return budget
    if topic == "features":
        return features and not intents.prices(sentence)
    return intents.says(sentence, ASK_WANTS) and not (budget or features)


@dataclass(frozen=True)
class BuyerMove:
    """A parsed buyer's message: wants, a price in dollars (an offer, or the budget after a question for it), whether final."""

    brand: str | None
    type: str | None
    features: tuple[str, ...]
    price: float | None
    final: bool
    refuses_car: bool


_WRONG_CAR = phrases(r"not what i want\b", r"not the right car\b", r"wrong car\b", r"do not want that\b")


def buyer_move(message: str) -> BuyerMove:
    """Parse a buyer's message."""
    text = intents.clean(message)
    brands = intents.names(text, BRANDS)
    return BuyerMove(
        brand=brands[0] if brands else None,
        type=next(iter(_mentioned(text, TYPES)), None),
        features=tuple(_mentioned(text, FEATURES)),
        price=offered_price(text),
        final=intents.says(text, LAST_OFFER),
        refuses_car=intents.says(text, _WRONG_CAR),
    )


def _mentioned(text: str, topics: dict[str, re.Pattern[str]]) -> list[str]:
    """Topics in order of first mention."""
    found = [(match.start(), name) for name, pattern in topics.items() if (match := pattern.search(text))]
    return [name for _, name in sorted(found)]
