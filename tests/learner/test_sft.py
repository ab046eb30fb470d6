import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, to_table
from mtrl_ray.errors import DataError
from mtrl_ray.learner.compute.optimisation import warmup_cosine
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.sft import SFT
from mtrl_ray.learner.rows.packing import turn_tokens
from mtrl_ray.learner.rows.tables import Dialogues
from tests.learner.examples import agent_turn


def echoes(count: int) -> pa.Table:
    """The agent says the last token of the user, then 1."""
    generator = np.random.default_rng(0)
    talks = []
    for number in range(count):
        prompts = generator.integers(5, 20, size=(3, 4)).tolist()
        turns = [turn for said in prompts for turn in (Turn(Role.USER, "", tokens=said), agent_turn([said[-1], 1]))]
        talks.append(Conversation(str(number), "e", "train", str(number), turns, 0.0, StopReason.LOGGED))
    return to_table(talks)


def test_it_learns_to_imitate(learner: Learner) -> None:
    metrics = SFT(steps=150, minibatch_conversations=16).run(learner.core, echoes(64))[1]
    assert metrics["steps"] == 150
    assert metrics["first_loss"] > 3.0
    assert metrics["loss"] < 0.5


def test_only_the_agents_tokens_carry_loss(learner: Learner, conversations: pa.Table) -> None:
    """The first step's loss is the mean over the agent's tokens of the model as it was."""
    rows = turn_tokens(Dialogues.read(conversations))
    expected = -learner.core.evaluate("policy", rows)["logprobs"].mean()
    metrics = SFT(steps=1, minibatch_conversations=1000).run(learner.core, conversations)[1]
    assert metrics["first_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert metrics["trained_tokens"] == len(rows.items)


def test_passes_or_seconds_bound_it(learner: Learner, conversations: pa.Table) -> None:
    assert SFT(epochs=3, minibatch_conversations=5).run(learner.core, conversations)[1]["steps"] == 9
    assert SFT(steps=10**6, seconds=0.5).run(learner.core, conversations)[1]["steps"] < 10**6
    with pytest.raises(DataError, match="nothing to imitate"):
        SFT().run(learner.core, conversations.slice(0, 0))


def test_sft_moves_the_initial_reference(learner: Learner, conversations: pa.Table) -> None:
    SFT(steps=3).run(learner.core, conversations)
    reference = learner.core.model("reference")
    for own, copied in zip(learner.core.models.policy.parameters(), reference.parameters(), strict=True):
        assert torch.equal(own, copied)


def test_schedule() -> None:
    assert warmup_cosine(0.05, 0.1) == pytest.approx(0.5)
    assert warmup_cosine(0.1, 0.1) == pytest.approx(1.0)
    assert warmup_cosine(0.55, 0.1) == pytest.approx(0.1 + 0.9 * 0.5)
    assert warmup_cosine(1.0, 0.1) == pytest.approx(0.1)
    assert warmup_cosine(0.0, 0.0) == pytest.approx(1.0)
    assert math.isfinite(warmup_cosine(2.0, 0.5))
