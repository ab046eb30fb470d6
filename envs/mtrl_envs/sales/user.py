"""The other side of a `sales` conversation: the business that forwards suggestions, and the customer.

1. The business sends a suggestion as it is, edits it, or ignores it and sends another message (2511.21638 §2.1);
   after an empty suggestion (the agent abstains) it always sends another message.
2. The customer answers questions about kind, use and budget, sometimes vaguely. The first question on a topic is free.
3. An offer that does not fit costs patience and goodwill. One that fits is bought with a probability that grows with how
   much the customer has told, times the goodwill. A customer with a worry (price or quality) states it first.
4. A worry about the price is settled by a discount or a reason, one about the quality by a guarantee.
5. The customer leaves when its patience is used up. Each turn has its own generator, seeded by (context, seed, turn).
"""

import random
from dataclasses import dataclass
from typing import Any

from mtrl_envs.base import Outcome, Reply, User
from mtrl_envs.sales.moves import CATALOGUE, KIND_OF, Product, SellerMove, fitting, seller_move
from mtrl_envs.scripted import intents
from mtrl_ray.dialogue.conversation import StopReason

SENT_LIMIT = 300
"""Characters after which the business cuts a suggestion."""

OWN_MESSAGES = (
    "Thanks for your message.",
    "Take your time.",
    "We have many good products.",
    "Many people like the {name}.",
)
ADDITIONS = ("Just let us know.", "We are happy to help.", "Delivery is free.")

SAYINGS: dict[str, tuple[str, ...]] = {
    "open_vague": ("Hi, can you help me?", "Hello, I want to buy something.", "Hi, I am just looking around."),
    "open_kind": ("Hi, I need a new {kind}.", "Hello, I am looking for a {kind}.", "Do you have a good {kind}?"),
    "open_use": (
        "Hi, I need something for {use}.",
        "Hello, what do you have for {use}?",
        "I want something good for {use}.",
    ),
    "kind": ("A {kind}, please.", "I want a {kind}.", "I am looking for a {kind}."),
    "use": ("It is for {use}.", "Mostly for {use}.", "I need it for {use}."),
    "budget": ("About ${budget}.", "I can spend ${budget}.", "My budget is ${budget}."),
    "vague": ("Hmm, I do not know yet.", "That is hard to say.", "This and that."),
    "wrong_kind": ("No, I want a {kind}.", "No, it has to be a {kind}."),
    "wrong_use": ("No, it has to be for {use}.", "No, I need it for {use}."),
    "dear": ("No, that is too expensive.", "No, that is over my budget."),
    "simple": ("No, that is too simple.", "No, I want something better."),
    "wrong": ("No, that is not for me.", "No, not what I want."),
    "price": (
        "I like it, but the price hurts.",
        "It fits, but that is a lot of money.",
        "Nice, but what about the price?",
    ),
    "quality": ("I like it, but will it last?", "It fits, but can I trust it?", "Nice, but what if it breaks?"),
    "unsure": ("Hmm, maybe. Let me think.", "Maybe. I have to think about it."),
    "buy": ("Great, I will take it.", "Yes, I buy it.", "Deal, please send it."),
    "which": ("That is a lot. Which one is right for me?", "Too many at once, which one?"),
    "hello": ("Hello. So, can you help me?", "Thanks. What now?"),
    "lost": ("Sorry, what do you mean?", "I do not understand."),
    "nothing_yet": ("For what? I have not seen anything yet.", "Show me something first."),
    "leave": ("I will look elsewhere, bye.", "This leads nowhere, bye."),
}


@dataclass(frozen=True)
class Business:
    """The business between agent and customer; the three probabilities sum to 1."""

    as_is: float = 0.80
    edited: float = 0.12
    ignored: float = 0.08

    def deliver(self, suggestion: str, rng: random.Random) -> str | None:
        """The message sent instead of a suggestion; None if the suggestion is sent as it is."""
        draw = rng.random()
        if not suggestion.strip() or draw < self.ignored:
            return rng.choice(OWN_MESSAGES).format(name=rng.choice(sorted(CATALOGUE)))
        if draw < self.ignored + self.edited:
            return self._edit(suggestion, rng)
        return suggestion[:SENT_LIMIT] if len(suggestion) > SENT_LIMIT else None

    @staticmethod
    def _edit(suggestion: str, rng: random.Random) -> str:
        parts = intents.sentences(suggestion[:SENT_LIMIT])
        if len(parts) > 1 and rng.random() < 0.5:
            return parts[0]
        return f"{suggestion[:SENT_LIMIT].strip()} {rng.choice(ADDITIONS)}"


class Customer(User):
    """A scripted customer. `profile`: kind, use, budget (dollars), worry, patience, opening, talkative."""

    def __init__(self, key: str, profile: dict[str, Any], business: Business, vague: float) -> None:
        self._key = key
        self._profile = profile
        self._business = business
        self._vague = vague
        self._turn = 0
        self._patience: int = profile["patience"]
        self._goodwill = 1.0
        self._told: set[str] = set()
        self._offered: set[str] = set()
        self._pending: Product | None = None
        self._settled: bool = profile["worry"] == "none"
        self._greeted = False
        self._sold = False
        self._wanted = fitting(profile["kind"], profile["use"], profile["budget"])
        self._rng = random.Random(f"{key}/0")

    def opening(self) -> str:
        """The first message, either vague or with the kind or the use."""
        opening: str = self._profile["opening"]
        if opening != "vague":
            self._tell(opening)
        return self._say(f"open_{opening}")

    def reply(self, response: str) -> Reply:
        """Answer the message that the business sends for a suggestion."""
        self._turn += 1
        self._rng = random.Random(f"{self._key}/{self._turn}")
        sent = self._business.deliver(response, self._rng)
        text = self._answer(seller_move(response if sent is None else sent))
        if self._sold:
            return Reply(text, sent, reward=1.0, stop=StopReason.OUTCOME)
        if self._patience <= 0:
            return Reply(self._say("leave"), sent, stop=StopReason.USER_LEFT)
        return Reply(text, sent)

    def redraw(self, seed: int) -> None:
        """See `User.redraw`."""
        self._key = f"{self._key}/{seed}"

    def outcome(self) -> Outcome:
        """Score 1 for a purchase; metrics: sold, offers made, goodwill left (0 to 1)."""
        sold = float(self._sold)
        return Outcome(sold, {"sold": sold, "offers": float(len(self._offered)), "goodwill": self._goodwill})

    def _answer(self, move: SellerMove) -> str:
        if move.hostile or move.farewell:
            self._patience -= 3
            return self._say("lost")
        if len(move.offers) > 2:
            self._patience -= 1
            return self._say("which")
        if move.offers:
            reaction = self._consider(CATALOGUE[move.offers[0]], move)
            if not self._sold and self._pending is None and move.asks:
                return f"{reaction} {self._inform(move.asks)}"
            return reaction
        if move.discount or move.value or move.reassures:
            return self._hear_argument(move)
        if move.asks:
            return self._inform(move.asks)
        if move.closes:
            return self._decide(push=True) if self._pending else self._impatient("nothing_yet")
        if move.greets and not self._greeted:
            self._greeted = True
            return self._say("hello")
        return self._impatient("lost")

    def _consider(self, product: Product, move: SellerMove) -> str:
        again = product.name in self._offered
        self._offered.add(product.name)
        quoted = product.price if move.price is None else move.price
        if product != self._wanted or quoted > self._profile["budget"]:
            self._pending = None
            self._patience -= 2
            self._goodwill *= 0.6
            return self._complain(product, quoted)
        self._pending = product
        if self._answers_worry(move) or (quoted < 0.97 * product.price and self._profile["worry"] == "price"):
            self._settled = True
        if not self._settled and not again:
            return self._say(self._profile["worry"])
        return self._decide(push=again)

    def _complain(self, product: Product, quoted: float) -> str:
        if self._rng.random() < 0.5:
            return self._say("wrong")
        if product.kind != self._profile["kind"]:
            self._tell("kind")
            return self._say("wrong_kind")
        if product.use != self._profile["use"]:
            self._tell("use")
            return self._say("wrong_use")
        return self._say("dear" if quoted > self._profile["budget"] else "simple")

    def _answers_worry(self, move: SellerMove) -> bool:
        worry = self._profile["worry"]
        return (worry == "price" and (move.discount or move.value)) or (worry == "quality" and move.reassures)

    def _hear_argument(self, move: SellerMove) -> str:
        if self._pending is None:
            return self._impatient("nothing_yet")
        if self._answers_worry(move):
            self._settled = True
            return self._decide(push=False)
        if self._settled:
            return self._decide(push=True)
        return self._impatient(self._profile["worry"])

    def _decide(self, push: bool) -> str:
        """Decide whether to buy. Pushing costs patience and goodwill; an open worry prevents the purchase."""
        if push:
            self._patience -= 1
            self._goodwill *= 0.8
        trust = 0.03 + 0.3 * len(self._told)
        worried = 1.0 if self._settled else 0.3
        if self._rng.random() < self._goodwill * trust * worried:
            self._sold = True
            return self._say("buy")
        return self._say("unsure" if self._settled else self._profile["worry"])

    def _inform(self, asks: tuple[str, ...]) -> str:
        topic = next((topic for topic in asks if topic not in self._told), asks[0])
        if topic in self._told:
            self._patience -= 1
            return "As I said. " + self._say(topic)
        if self._rng.random() < self._vague:
            return self._say("vague")
        self._tell(topic)
        answer = self._say(topic)
        if topic == "kind" and self._profile["talkative"] and "use" not in self._told:
            self._tell("use")
            answer += " " + self._say("use")
        return answer

    def _tell(self, topic: str) -> None:
        self._told.add(topic)
        if topic == "use":
            self._told.add("kind")

    def _impatient(self, saying: str) -> str:
        self._patience -= 1
        return self._say(saying)

    def _say(self, saying: str) -> str:
        profile = self._profile
        use = profile["use"] + (" rides" if KIND_OF[profile["use"]] == "bike" else "")
        return self._rng.choice(SAYINGS[saying]).format(kind=profile["kind"], use=use, budget=profile["budget"])
