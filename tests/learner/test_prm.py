"""The implicit process reward model against gradients computed one conversation at a time, and what it learns."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaForCausalLM

from mtrl_ray.dialogue.conversation import from_table
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.conversations import ConversationImprovement
from mtrl_ray.learner.methods.prm import ImplicitRewards, PRMFit, ScoreTurns
from mtrl_ray.settings.tree import LearnerSettings
from tests.learner.examples import grouped, talk

BETA = 0.5
SPEC = PRMFit(beta=BETA, epochs=2, minibatch_conversations=4, learning_rate=2e-3)


def learner_with(policy_folder: Path, budget: int = 256) -> Learner:
    settings = LearnerSettings(threads=1, tokens_per_microbatch=budget)
    return Learner(settings, policy_folder, seed=3)


def naive_sums(model: LlamaForCausalLM, conversations: pa.Table) -> list[torch.Tensor]:
    """Summed log-probability of each conversation's agent tokens."""
    sums = []
    for talked in from_table(conversations):
        tokens, mask = torch.tensor([talked.tokens]), torch.from_numpy(talked.mask)
        logprobs = model(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
        sums.append(logprobs[mask[1:]].sum())
    return sums


def test_the_loss_and_its_gradient_are_those_of_whole_conversations(policy_folder: Path) -> None:
    talks = grouped(seed=4, contexts=3, samples=4)
    scores = torch.tensor(talks["score"].to_pylist())
    learner, frozen = learner_with(policy_folder), LlamaForCausalLM.from_pretrained(policy_folder)
    warm = PRMFit(beta=BETA, minibatch_conversations=1000, learning_rate=1e-2, max_gradient_norm=None)
    first = warm.run(learner.core, talks)[1]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5), "a copy of its reference knows nothing"
    learned = learner.core.models.get("prm").model
    with torch.no_grad():
        reference = torch.stack(naive_sums(frozen, talks))
    model = LlamaForCausalLM.from_pretrained(policy_folder)
    model.load_state_dict(learned.state_dict())
    sums = BETA * (torch.stack(naive_sums(model, talks)) - reference)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(sums, scores)
    loss.backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    rewards = ImplicitRewards(BETA).run(learner.core, talks)[0]
    lengths = [int(talked.mask.sum()) for talked in from_table(talks)]
    by_talk = [part.sum() for part in np.split(rewards, np.cumsum(lengths)[:-1])]
    np.testing.assert_allclose(by_talk, sums.detach().numpy(), atol=2e-4)
    second = warm.run(learner.core, talks)[1]
    assert second["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert second["gradient_norm"] == pytest.approx(float(norm), rel=1e-3)


def test_the_size_of_micro_batches_changes_nothing(policy_folder: Path) -> None:
    talks = grouped(seed=5, contexts=4, samples=3)
    found = []
    for budget in (64, 200, 16_384):
        learner = learner_with(policy_folder, budget)
        found.append((SPEC.run(learner.core, talks)[1]["loss"], ImplicitRewards(BETA).run(learner.core, talks)[0]))
    for loss, rewards in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-5)
        np.testing.assert_allclose(rewards, found[0][1], atol=1e-4)


def test_it_learns_which_turns_the_outcome_depends_on(policy_folder: Path) -> None:
    learner = learner_with(policy_folder)
    spec = PRMFit(beta=BETA, minibatch_conversations=8, learning_rate=3e-3)
    for number in range(6):
        metrics = spec.run(learner.core, grouped(seed=number, contexts=12, samples=4))[1]
    assert metrics["pair_accuracy"] > 0.7 and metrics["r"] > 0.4, metrics
    talks = talk(seed=99, count=40)
    rewards, lengths, outcomes = ImplicitRewards(BETA).run(learner.core, talks)[0], [], []
    for talked in from_table(talks):
        lengths += [len(talked.turns[turn].tokens) for turn in talked.agent_turns]
        outcomes += talked.rewards
    turns = np.array([part.sum() for part in np.split(rewards, np.cumsum(lengths)[:-1])])
    table = ScoreTurns(BETA).run(learner.core, talks)[0]
    np.testing.assert_allclose(table["reward"], turns, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate(table["token_rewards"].to_pylist()).astype(np.float32), rewards)
    asked = [(talked.id, turn) for talked in from_table(talks) for turn in talked.agent_turns]
    assert list(zip(table["conversation_id"].to_pylist(), table["turn"].to_pylist(), strict=True)) == asked
    good = np.array(outcomes) > 0
    assert turns[good].mean() > turns[~good].mean() + 0.3


def test_the_reference_is_the_policy_before_its_first_step_whenever_the_model_is_made(policy_folder: Path) -> None:
    talks = grouped(seed=6, contexts=2, samples=3)
    tokens = sum(int(talked.mask.sum()) for talked in from_table(talks))
    learner = learner_with(policy_folder)
    advantages = np.linspace(-1, 1, tokens, dtype=np.float32)
    ConversationImprovement(learning_rate=1e-2, minibatch_conversations=1000).run(learner.core, talks, advantages)
    SPEC.model_copy(update={"learning_rate": 1e-12}).run(learner.core, talks)
    np.testing.assert_allclose(ImplicitRewards(BETA).run(learner.core, talks)[0], 0.0, atol=1e-4)


def test_what_cannot_be_is_refused(policy_folder: Path) -> None:
    learner, talks = learner_with(policy_folder), grouped(seed=6, contexts=2, samples=2)
    with pytest.raises(ConfigurationError, match="run PRMFit first"):
        ImplicitRewards(BETA).run(learner.core, talks)
    with pytest.raises(DataError, match="nothing to learn from"):
        PRMFit().run(learner.core, talks.slice(0, 0))
