"""`sales`: an agent suggests replies to a business that talks to a customer; the outcome is a purchase.

The setting is that of 2511.21638 §2.1.

1. The customer has hidden needs (kind of product, use, budget), perhaps a worry, and limited patience. It starts vaguely.
2. The agent suggests a message; the business sends it, an edited version, or another message (`Reply.sent`).
3. A purchase gives reward 1 on arrival and ends the conversation; the score is 1 for a purchase, 0 otherwise.
4. An immediate offer sometimes succeeds by luck, but wrong offers cost goodwill, and trust grows with questions. The
   best policy for the next reply alone (`greedy`) sells far less than one that plans ahead (`expert`).
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mtrl_envs.base import Agent, Context, Environment, Probe, User
from mtrl_envs.llm.options import user_kind
from mtrl_envs.sales.agents import SalesAgent, probe
from mtrl_envs.sales.llm import customer as llm_customer
from mtrl_envs.sales.moves import CATALOGUE, SYSTEM, SYSTEM_WITH_CATALOGUE, seller_move
from mtrl_envs.sales.user import Business, Customer
from mtrl_envs.scripted.intents import clean, template_markers
from mtrl_envs.scripted.options import share
from mtrl_envs.scripted.splits import Profile, draw
from mtrl_ray.dialogue.conversation import Role
from mtrl_ray.errors import ConfigurationError

TIGHT, AMPLE = (400, 500, 600), (1100, 1200, 1300)
"""Budgets in dollars: enough for simple products only; enough for every product."""

LONGEST_RESPONSE = 60
"""Longest well-formed suggestion, in words."""


class Sales(Environment):
    """Suggested replies for a shop.

    Options: `as_is`, `edited`, `ignored` (probabilities of what the business does, sum 1); `vague` (probability of a vague
    answer); `catalogue` (whether the system prompt lists the products, for a policy that has not learned them from the
    warm start); `user` ("scripted" or "llm") and `llm`
    (settings of `mtrl_envs.llm.user.LLMSettings`). Raises ConfigurationError for invalid values.
    """

    name: ClassVar[str] = "sales"
    max_turns: ClassVar[int] = 8
    warm_start: ClassVar[dict[str, float]] = {"expert": 0.55, "greedy": 0.35, "random": 0.1}

    def __init__(
        self,
        *,
        as_is: float = 0.80,
        edited: float = 0.12,
        ignored: float = 0.08,
        vague: float = 0.15,
        catalogue: bool = False,
        user: str = "scripted",
        llm: Mapping[str, Any] | None = None,
    ) -> None:
        shares = {"as_is": as_is, "edited": edited, "ignored": ignored}
        for key, value in shares.items():
            share("sales", key, value)
        if abs(sum(shares.values()) - 1) > 1e-6:
            raise ConfigurationError(f"sales: as_is + edited + ignored is {sum(shares.values()):g}; it has to be 1")
        self._business = Business(as_is, edited, ignored)
        self._vague = share("sales", "vague", vague)
        self._system = SYSTEM_WITH_CATALOGUE if catalogue else SYSTEM
        self._llm = user_kind("sales", user, llm)

    def context(self, split: str, index: int) -> Context:
        """The `index`-th customer of a split."""
        profile = draw(self.name, split, index, sample_profile)
        return Context(f"{split}-{index}", split, index, self._system, profile)

    def user(self, context: Context, seed: int) -> User:
        """The business and its customer."""
        key = f"sales/{context.id}/{seed}"
        if self._llm is not None:
            return llm_customer(self._llm, key, seed, context.hidden, self._business)
        return Customer(key, context.hidden, self._business, self._vague)

    def agent(self, name: str, seed: int) -> Agent:
        """The scripted agent `expert`, `greedy` or `random`. KeyError for another name."""
        return SalesAgent(name, seed)

    def probe(self, history: Sequence[tuple[Role, str]]) -> Probe | None:
        """See `agents.probe`."""
        return probe(history)

    def well_formed(self, response: str) -> bool:
        """Whether a suggestion has at least one intent, no template markup, and at most `LONGEST_RESPONSE` words.

        An empty suggestion (the agent abstains) is allowed in a conversation, but it is not a well-formed message.
        """
        short = len(clean(response).split()) <= LONGEST_RESPONSE
        return short and not template_markers(response) and seller_move(response).understood


def sample_profile(rng: random.Random) -> Profile:
    """A random customer: needs, budget in dollars, worry, patience, manner."""
    product = rng.choice(list(CATALOGUE.values()))
    better = product.price >= 700
    budget = rng.choice(AMPLE if better else TIGHT)
    return {
        "kind": product.kind,
        "use": product.use,
        "budget": budget,
        "worry": rng.choice(["none", "price", "quality"]),
        "patience": rng.choice([4, 5, 6]),
        "opening": rng.choice(["vague", "vague", "kind", "kind", "use"]),
        "talkative": rng.random() < 0.3,
    }
