"""The catalogue of `sales`, and parsers for the messages of both sides.

1. Twelve products: three kinds, two uses of each, a simple and a better one for every use. The product that fits a customer
   is the most expensive one of their kind and use within their budget.
2. `seller_move` parses a message to the customer, `customer_move` a customer's message. Both accept free text.
"""

import re
from dataclasses import dataclass

from mtrl_envs.scripted import intents
from mtrl_envs.scripted.intents import phrases


@dataclass(frozen=True)
class Product:
    """One product; `price` in dollars."""

    name: str
    kind: str
    use: str
    price: int


CATALOGUE: dict[str, Product] = {
    name: Product(name, kind, use, price)
    for name, kind, use, price in [
        ("Walnut", "laptop", "study", 300),
        ("Cobalt", "laptop", "study", 900),
        ("Marble", "laptop", "gaming", 400),
        ("Falcon", "laptop", "gaming", 1000),
        ("Pelican", "camera", "sports", 250),
        ("Meteor", "camera", "sports", 800),
        ("Lantern", "camera", "portraits", 350),
        ("Saffron", "camera", "portraits", 900),
        ("Willow", "bike", "city", 200),
        ("Juniper", "bike", "city", 700),
        ("Badger", "bike", "mountain", 400),
        ("Copper", "bike", "mountain", 1100),
    ]
}

KIND_OF: dict[str, str] = {product.use: product.kind for product in CATALOGUE.values()}
"""Kind of product of each use."""

SYSTEM_WITH_CATALOGUE = (
    "Suggest replies that sell. Laptops: study Walnut $300, Cobalt $900; gaming Marble $400, Falcon $1000. "
    "Cameras: sports Pelican $250, Meteor $800; portraits Lantern $350, Saffron $900. "
    "Bikes: city Willow $200, Juniper $700; mountain Badger $400, Copper $1100."
)
"""System prompt for an agent that does not know the catalogue."""

SYSTEM = "Suggest replies that sell laptops, cameras or bikes."
"""System prompt for an agent that learned the catalogue from conversations; short, because prompt tokens cost time."""

KINDS = {
    "laptop": phrases(r"laptops?\b", r"notebooks?\b", r"computers?\b"),
    "camera": phrases(r"cameras?\b"),
    "bike": phrases(r"bikes?\b", r"bicycles?\b"),
}
USES = {
    "study": phrases(r"stud(y|ies|ying)\b", r"school\b", r"university\b", r"college\b", r"homework\b"),
    "gaming": phrases(r"gam(es?|ing)\b"),
    "sports": phrases(r"sports?\b", r"football\b", r"action shots\b"),
    "portraits": phrases(r"portraits?\b"),
    "city": phrases(r"city\b", r"commut(e|ing)\b", r"urban\b"),
    "mountain": phrases(r"mountains?\b", r"trails?\b", r"off-?road\b"),
}

ASK_KIND = phrases(
    r"(what|which|what kind of|what type of|what sort of) (product|item|thing|article|device)",
    r"what (are|were) you (looking|shopping|searching|hoping|after|interested)",
    r"what (do|would|did|can|could) (you|i|we) (need|want|like|help|do for|get|have in mind)",
    r"(how|what) (can|may|could) (i|we) (help|do for|assist)",
    r"what (brings|brought) you",
    r"(kind|type|sort) of (product|item|thing|article|device)",
    r"(looking|searching|shopping) for",
    r"interested in\b",
    r"(can|may) i help",
)
ASK_USE = phrases(
    r"(use|using|used|usage|purpose)\b",
    r"what\b[^?]{0,40}(?<!looking )(?<!searching )(?<!shopping )for *\?",
    r"need it for\b",
    r"plan(ning)? (to do|on doing)",
    r"(do|doing) with (it|the|your)",
    r"activit(y|ies)\b",
    r"matters? most\b",
)
ASK_BUDGET = phrases(
    r"budget\b",
    r"(spend|spending|afford|invest)\b",
    r"price (range|point|limit)\b",
    r"how much (can|could|would|do|did|are|were|money)",
    r"(like|want|able|willing|prepared|hoping|looking|planning) to (pay|spend)\b",
    r"price do you have in mind\b",
)
DISCOUNT = phrases(
    r"discount",
    r"(percent|%) (off|less|discount)",
    r"(take|knock) .{0,20}off\b",
    r"(reduce|lower|drop|cut) (the|our|its) price",
    r"cheaper for you\b",
    r"(special|better|lower|reduced) (price|deal|offer)\b",
    r"(voucher|coupon|rebate)s?\b",
    r"save you\b",
)
DISCOUNT_SIGN = re.compile(r"\d ?% ?(off|less|discount)|\$\d+ off\b")
VALUE = phrases(
    r"(worth (it|every)|good value|value for|pays? (for itself|off)|instal?lments|financing|payment plan)\b"
)
REASSURANCE = phrases(
    r"(warranty|guarantee)",
    r"(refund|money back|return (it|policy)|returns\b)",
    r"(reliable|durable|sturdy|robust|trusted|long-lasting)\b",
    r"(lasts?|trust)\b",
    r"(reviews?|well rated|top rated)\b",
)
_NOT_MEANT = re.compile(r"(instead of|unlike|rather than|compared to|(?<!why )not|than|forget)( the| a| our)?\W*$")


@dataclass(frozen=True)
class SellerMove:
    """A parsed message to the customer. `asks`: any of kind, use, budget; `offers`: product names; `price`: dollars."""

    asks: tuple[str, ...]
    offers: tuple[str, ...]
    price: float | None
    discount: bool
    value: bool
    reassures: bool
    closes: bool
    greets: bool
    farewell: bool
    hostile: bool

    @property
    def understood(self) -> bool:
        """Whether the message has at least one intent."""
        flags = (self.discount, self.value, self.reassures, self.closes, self.greets, self.farewell, self.hostile)
        return bool(self.asks or self.offers) or any(flags)


def seller_move(message: str) -> SellerMove:
    """Parse a message to the customer into its intents."""
    text = intents.clean(message)
    offers = [
        name for at, name in intents.name_spans(text, CATALOGUE) if not _NOT_MEANT.search(text[max(0, at - 25) : at])
    ]
    amounts = intents.prices(text)
    return SellerMove(
        asks=tuple(
            topic for topic in ("kind", "use", "budget") if any(_asks(part, topic) for part in intents.sentences(text))
        ),
        offers=tuple(dict.fromkeys(offers)),
        price=amounts[-1] if offers and amounts else None,
        discount=intents.says(text, DISCOUNT, DISCOUNT_SIGN),
        value=intents.says(text, VALUE),
        reassures=intents.says(text, REASSURANCE),
        closes=intents.says(text, intents.CLOSING),
        greets=intents.says(text, intents.GREETING),
        farewell=intents.says(text, intents.FAREWELL),
        hostile=intents.says(text, intents.REFUSAL, intents.INSULT),
    )


def _asks(sentence: str, topic: str) -> bool:
    """Whether a sentence asks about kind, use or budget; the broad pattern for the kind yields to the other two."""
    if not intents.is_question(sentence):
        return False
    budget = intents.says(sentence, ASK_BUDGET)
    use = intents.says(sentence, ASK_USE) or len(_mentioned(sentence, USES)) > 1
    if topic == "budget":
        return budget
    if topic == "use":
        return use
    return not (budget or use) and (intents.says(sentence, ASK_KIND) or len(_mentioned(sentence, KINDS)) > 1)


@dataclass(frozen=True)
class CustomerMove:
    """A parsed customer's message; None or False for what it does not say.

    `complaint`: `dear` (over budget), `simple` (too basic) or `other`. `objection`: `price`, `quality` or `unsure`.
    """

    kind: str | None
    use: str | None
    budget: float | None
    complaint: str | None
    objection: str | None


TOO_DEAR = phrases(
    r"too (expensive|dear|much|pricey)\b", r"(over|above|beyond|out of) my (budget|price range)\b", r"can't afford\b"
)
TOO_SIMPLE = phrases(r"too (simple|basic|cheap)\b", r"something better\b")
NO = phrases(r"no\b", r"not (right|for me|what)\b", r"wrong\b")
PRICE_WORRY = phrases(r"price\b", r"lot of money\b", r"(discount|cheaper)\b")
QUALITY_WORRY = phrases(r"(breaks?|last|trust|reliable|quality|warranty|guarantee)\b")
UNSURE = phrases(r"maybe\b", r"not sure about it\b", r"think about it\b", r"let me think\b", r"hesitat")


def customer_move(message: str) -> CustomerMove:
    """Parse a customer's message."""
    text = intents.clean(message)
    uses, kinds, amounts = _mentioned(text, USES), _mentioned(text, KINDS), intents.prices(text)
    return CustomerMove(
        kind=kinds[0] if len(kinds) == 1 else (KIND_OF[uses[0]] if len(uses) == 1 else None),
        use=uses[0] if len(uses) == 1 else None,
        budget=amounts[-1] if amounts else None,
        complaint=_complaint(text),
        objection=None if _complaint(text) else _objection(text),
    )


def _complaint(text: str) -> str | None:
    if intents.says(text, TOO_DEAR):
        return "dear"
    if intents.says(text, TOO_SIMPLE):
        return "simple"
    return "other" if NO.match(text) else None


def _objection(text: str) -> str | None:
    if intents.says(text, PRICE_WORRY):
        return "price"
    if intents.says(text, QUALITY_WORRY):
        return "quality"
    return "unsure" if intents.says(text, UNSURE) else None


def _mentioned(text: str, topics: dict[str, re.Pattern[str]]) -> list[str]:
    return [name for name, pattern in topics.items() if pattern.search(text)]


def fitting(kind: str, use: str, budget: float) -> Product | None:
    """The most expensive product of a kind and use within a budget; None if there is none."""
    within = [p for p in CATALOGUE.values() if (p.kind, p.use) == (kind, use) and p.price <= budget]
    return max(within, key=lambda product: product.price, default=None)
