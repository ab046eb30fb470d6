"""Scripted agents of `sales`: they see what the policy sees and draw their phrasings from a seed.

1. `expert` asks for unknown needs (kind, use, budget), then offers the product that fits, and answers a worry.
2. `greedy` maximises the probability of a purchase in the current turn: it offers its best guess every turn.
3. `random` makes a random move.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from mtrl_envs.base import Probe
from mtrl_envs.sales.moves import CATALOGUE, Product, customer_move, fitting, seller_move
from mtrl_ray.dialogue.conversation import Role

LAST_QUESTION = 5
"""Agent turns after which the expert stops asking; the conversation ends at eight."""

REPERTOIRE: dict[str, tuple[str, ...]] = {
    "kind": ("What are you looking for?", "What kind of product do you need?", "How can I help, what do you want?"),
    "use": ("What will you use it for?", "What do you need it for?", "How do you plan to use it?"),
    "budget": ("What is your budget?", "How much do you want to spend?", "What price range do you have in mind?"),
    "offer": (
        "I recommend the {name} for ${price}.",
        "The {name} at ${price} is right for you.",
        "How about the {name} for ${price}?",
    ),
    "discount": ("I can give you a discount.", "We can take ten percent off.", "There is a special price today."),
    "reassure": (
        "It has a two year warranty.",
        "You can return it any time, money back.",
        "It is reliable, people trust it.",
    ),
    "close": ("Shall I order it?", "Do you want to buy it now?", "Can I place the order?"),
    "hello": ("Hello, nice to meet you.", "Hi, welcome to our shop."),
}
"""Phrasings of each move."""


@dataclass
class Known:
    """What is known from the history: the customer's needs, excluded products, current offer and objection."""

    kind: str | None = None
    use: str | None = None
    budget: float | None = None
    below: float = float("inf")
    above: float = 0.0
    rejected: set[str] = field(default_factory=set)
    last_offer: Product | None = None
    objection: str | None = None
    turns: int = 0

    def candidates(self) -> list[Product]:
        """Products that fit the known needs; never empty."""
        fresh = [product for product in CATALOGUE.values() if product.name not in self.rejected]
        matching = [
            product
            for product in fresh
            if self.kind in (None, product.kind)
            and self.use in (None, product.use)
            and self.above < product.price < self.below
            and (self.budget is None or fitting(product.kind, product.use, self.budget) == product)
        ]
        return matching or fresh or list(CATALOGUE.values())


def split_sent(text: str) -> tuple[str | None, str]:
    """Split a user message into the text sent instead of the suggestion (None if none) and the customer's words."""
    if not text.startswith("(sent: "):
        return None, text
    sent, _, words = text[len("(sent: ") :].rpartition(") ")
    return sent, words


def known(history: Sequence[tuple[Role, str]]) -> Known:
    """What is known after the whole history."""
    state = Known()
    suggestion = ""
    for role, text in history:
        if role == Role.AGENT:
            suggestion = text
            state.turns += 1
        elif role == Role.USER:
            sent, words = split_sent(text)
            _read_exchange(state, suggestion if sent is None else sent, words)
    return state


def _read_exchange(state: Known, message: str, words: str) -> None:
    offers = seller_move(message).offers
    if offers:
        state.last_offer = CATALOGUE[offers[0]]
    told = customer_move(words)
    state.objection = told.objection
    if told.complaint and state.last_offer:
        _read_complaint(state, state.last_offer, told.complaint)
        state.last_offer = None
    state.kind = told.kind or state.kind
    state.use = told.use or state.use
    state.budget = told.budget or state.budget


def _read_complaint(state: Known, offer: Product, complaint: str) -> None:
    state.rejected.add(offer.name)
    if complaint == "other":
        return
    state.kind, state.use = offer.kind, offer.use
    if complaint == "dear":
        state.below = offer.price
    else:
        state.above = offer.price


def probe(history: Sequence[tuple[Role, str]]) -> Probe | None:
    """If the customer has told kind, use and budget and got no offer: that of the two products of this kind and use which the
    budget decides for, and the other one."""
    state = known(history)
    if state.kind is None or state.use is None or state.budget is None or state.rejected or state.last_offer:
        return None
    right = fitting(state.kind, state.use, state.budget)
    same = [product for product in CATALOGUE.values() if (product.kind, product.use) == (state.kind, state.use)]
    wrong = [product for product in same if product != right]
    if right is None or not wrong:
        return None
    words = REPERTOIRE["offer"][state.turns % len(REPERTOIRE["offer"])]
    return Probe(*(words.format(name=product.name, price=product.price) for product in (right, wrong[0])))


class SalesAgent:
    """A scripted agent: `expert`, `greedy` or `random`."""

    def __init__(self, name: str, seed: int) -> None:
        self._move = {"expert": self._expert, "greedy": self._greedy, "random": self._random}[name]
        self._rng = random.Random(f"sales/{name}/{seed}")

    def respond(self, history: Sequence[tuple[Role, str]]) -> str:
        """The next suggestion."""
        state = known(history)
        move = self._move(state)
        product = self._rng.choice(list(CATALOGUE.values()) if move == "any" else state.candidates())
        if move == "offer" and state.last_offer is not None and state.objection == "unsure":
            product = state.last_offer
        return self._rng.choice(REPERTOIRE["offer" if move == "any" else move]).format(
            name=product.name, price=product.price
        )

    def _expert(self, state: Known) -> str:
        answer = self._answer(state)
        if answer is not None:
            return answer
        if state.turns < LAST_QUESTION:
            for topic in ("kind", "use", "budget"):
                if getattr(state, topic) is None and len(state.candidates()) > 1:
                    return topic
        return "offer"

    def _greedy(self, state: Known) -> str:
        return self._answer(state) or "offer"

    def _answer(self, state: Known) -> str | None:
        """The move that answers an objection to the current offer."""
        if state.last_offer is None or state.objection is None:
            return None
        return {"price": "discount", "quality": "reassure", "unsure": "close"}[state.objection]

    def _random(self, _state: Known) -> str:
        return self._rng.choice(
            ["kind", "use", "budget", "any", "any", "any", "any", "discount", "reassure", "close", "hello"]
        )
