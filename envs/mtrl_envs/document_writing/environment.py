"""`document_writing`: a user has a target document in mind; the agent's text is scored against it by BLEU (2603.23550).

1. The request names the kind (invitation, cancellation) and the event. Time, place, tone and length are hidden;
   the opening tells at most two of them.
2. The agent has at most five turns. Writing the document ends the conversation. The score is word-level
   BLEU by sacrebleu against the target, from 0 to 1.
3. Tone and length determine the wording: writing at once (`greedy`) misses most of it; asking first (`expert`) takes all turns.
4. Documents of the two splits differ in content; the user's behaviour does not depend on the split.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mtrl_envs.base import Agent, Context, Probe, User
from mtrl_envs.document_writing.agents import OTHERS, Writer
from mtrl_envs.document_writing.llm import client as llm_client
from mtrl_envs.document_writing.moves import writer_move
from mtrl_envs.document_writing.texts import TEMPLATES, TOPICS, sample_order
from mtrl_envs.document_writing.user import Client
from mtrl_envs.llm.options import user_kind
from mtrl_envs.scripted.intents import clean, template_markers
from mtrl_envs.scripted.options import share
from mtrl_envs.scripted.slots import SLOTS, Horizon, HorizonEnvironment, SlotAgent, SlotUser
from mtrl_envs.scripted.splits import draw
from mtrl_ray.dialogue.conversation import Role

SYSTEM = "Write the text the user has in mind. Ask for time, place, tone and length. Then write: Final: TEXT"
SYSTEM_WITH_TEMPLATES = f"{SYSTEM}. House style, by kind, tone and length:\n" + "\n".join(
    f"{' '.join(key)}: {template}" for key, template in TEMPLATES.items()
)

TOLD = (0, 0, 1, 1, 2)
"""Numbers of topics that the opening tells, drawn uniformly from this list."""

LONGEST_RESPONSE = 80
"""Longest well-formed response, in words."""


class DocumentWriting(HorizonEnvironment):
    """Short documents.

    Options: `noise` (probability that an answer of the scripted user is vague or wrong); `templates` (whether the system
    prompt shows the house style, for a policy without a warm start on it); `horizon` and `bernoulli`
    (`mtrl_envs.scripted.slots`); `user` ("scripted" or "llm") and `llm` (settings of `mtrl_envs.llm.user.LLMSettings`).
    Raises ConfigurationError for invalid values.
    """

    name: ClassVar[str] = "document_writing"
    max_turns: ClassVar[int] = 5
    warm_start: ClassVar[dict[str, float]] = {"expert": 0.45, "greedy": 0.5, "random": 0.05}

    def __init__(
        self,
        *,
        noise: float = 0.1,
        templates: bool = False,
        horizon: int | None = None,
        bernoulli: bool = False,
        user: str = "scripted",
        llm: Mapping[str, Any] | None = None,
    ) -> None:
        self._noise = share(self.name, "noise", noise)
        self._system = SYSTEM_WITH_TEMPLATES if templates else SYSTEM
        self._llm = user_kind(self.name, user, llm)
        apart = ["user: llm"] * (self._llm is not None) + ["templates"] * templates
        self._horizon = Horizon.parse(self.name, horizon, bernoulli, apart)

    def context(self, split: str, index: int) -> Context:
        """The `index`-th document of a split."""
        if self._horizon is not None:
            return self._horizon.context(self.name, split, index, sample_order, TOPICS)
        order = draw(self.name, split, index, sample_order)
        rng = random.Random(f"{self.name}/{split}/{index}/manner")
        order |= {"told": rng.sample(TOPICS, rng.choice(TOLD)), "patience": rng.choice([2, 3, 4])}
        return Context(f"{split}-{index}", split, index, self._system, order)

    def user(self, context: Context, seed: int) -> User:
        """The client."""
        key = f"{self.name}/{context.id}/{seed}"
        if self._llm is not None:
            return llm_client(self._llm, key, seed, context.hidden)
        if self._horizon is not None:
            clients = [Client(f"{key}/{turn}", slot, 0.0) for turn, slot in enumerate(context.hidden[SLOTS])]
            return SlotUser(key, clients, TOPICS, self._noise, self._horizon)
        return Client(key, context.hidden, self._noise)

    def agent(self, name: str, seed: int) -> Agent:
        """The scripted agent `expert`, `greedy` or `random`. KeyError for another name."""
        writer = Writer(name, seed)
        return writer if self._horizon is None else SlotAgent(name, writer)

    def probe(self, history: Sequence[tuple[Role, str]]) -> Probe | None:
        """See `AskingAgent.probe`."""
        if self._horizon is not None:
            return None
        return Writer("expert", 0).probe(history, OTHERS)

    def well_formed(self, response: str) -> bool:
        """Whether a response asks something, writes or greets, without template markup, in `LONGEST_RESPONSE` words."""
        short = len(clean(response).split()) <= LONGEST_RESPONSE
        return short and not template_markers(response) and writer_move(response).understood
