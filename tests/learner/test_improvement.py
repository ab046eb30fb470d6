"""Improvement steps against gradients computed one sequence at a time, and what they do to a policy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from mtrl_ray.dialogue.conversation import from_table
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.improvement import Improvement
from mtrl_ray.learner.methods.snapshot import Snapshot
from mtrl_ray.learner.operation import Numbers
from mtrl_ray.learner.sections import KL
from mtrl_ray.settings.tree import LearnerSettings
from tests.learner.examples import answer, talk

ONE_STEP = {"epochs": 1, "minibatch_conversations": 1000, "importance_cap": None, "max_gradient_norm": None}


def parameters_of(learner: Learner) -> np.ndarray:
    """The policy's parameters, flat."""
    return torch.cat([value.detach().flatten() for value in learner.core.models.policy.parameters()]).numpy()


def naive_logprobs(model: PreTrainedModel, history: list[int], tokens: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([history + tokens])).logits[0, len(history) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


def naive_advantages(rows: list[dict[str, object]], scores: np.ndarray, spec: Improvement) -> list[np.ndarray]:
    """Advantages per token by the definitions; the critic is a fresh one, which says the scores' mean everywhere."""
    states = [(row["conversation_id"], row["turn"]) for row in rows]
    found = []
    for index, row in enumerate(rows):
        length = len(row["tokens"])  # type: ignore[arg-type]
        group = [scores[other] for other, state in enumerate(states) if state == states[index]]
        if spec.estimator == "grpo":
            advantage = np.full(length, (scores[index] - np.mean(group)) / (np.std(group, ddof=1) + 1e-6))
        elif spec.estimator == "reinforce":
            advantage = np.full(length, scores[index] - (np.sum(group) - scores[index]) / (len(group) - 1))
        else:
            value, advantage, following = scores.mean(), np.zeros(length), 0.0
            for place in reversed(range(length)):
                last = place == length - 1
                delta = (scores[index] if last else value) - value
                following = advantage[place] = delta + spec.gae_lambda * (0.0 if last else following)
        found.append(advantage)
    if spec.whiten:
        flat = np.concatenate(found)
        found = [(one - flat.mean()) / flat.std(ddof=1) for one in found]
    return found


@pytest.mark.parametrize("aggregation", ["token", "turn"])
@pytest.mark.parametrize("estimator", ["ppo", "grpo", "reinforce"])
def test_the_first_gradient_is_the_policy_gradient(
    learner: Learner,
    policy_folder: Path,
    conversations: pa.Table,
    responses: pa.Table,
    estimator: str,
    aggregation: str,
) -> None:
    spec = Improvement(**ONE_STEP, estimator=estimator, aggregation=aggregation, whiten=estimator == "ppo")
    scores = np.random.default_rng(0).random(responses.num_rows).astype(np.float32)
    metrics = spec.run(learner.core, conversations, responses, scores)[1]
    states = list(zip(responses["conversation_id"].to_pylist(), responses["turn"].to_pylist(), strict=True))
    within = [scores[[one == state for one in states]] for state in set(states)]
    squares = sum(float(np.square(group - group.mean()).sum()) for group in within)
    assert metrics["score_within"] == pytest.approx(np.sqrt(squares / (len(scores) - len(within))), rel=1e-5)

    rows, by_id = responses.to_pylist(), {one.id: one for one in from_table(conversations)}
    model = LlamaForCausalLM.from_pretrained(policy_folder)
    advantages = naive_advantages(rows, scores.astype(np.float64), spec)
    tokens = sum(len(row["tokens"]) for row in rows)
    for row, advantage in zip(rows, advantages, strict=True):
        logprobs = naive_logprobs(model, by_id[row["conversation_id"]].history(row["turn"]), row["tokens"])
        share = tokens if aggregation == "token" else len(rows) * len(row["tokens"])
        (-(logprobs * torch.from_numpy(advantage)).sum() / share).backward()
    norm = torch.cat([value.grad.flatten() for value in model.parameters()]).norm()
    assert metrics["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert metrics["clip_fraction"] == 0.0


def test_trees_and_sequences_learn_the_same(
    policy_folder: Path, settings: LearnerSettings, conversations: pa.Table, responses: pa.Table
) -> None:
    scores = np.random.default_rng(0).random(responses.num_rows).astype(np.float32)
    trees, sequences = (Learner(settings, policy_folder, seed=3) for _ in range(2))
    assert trees.core.branch_tokens > 0
    sequences.core.branch_tokens = 0
    spec = Improvement(epochs=2, minibatch_conversations=1000, learning_rate=1e-3)
    first, second = (spec.run(one.core, conversations, responses, scores)[1] for one in (trees, sequences))
    np.testing.assert_allclose(parameters_of(trees), parameters_of(sequences), atol=1e-5)
    for name in ("policy_loss", "critic_loss", "kl_reference", "entropy", "clip_fraction", "explained_variance"):
        assert first[name] == pytest.approx(second[name], abs=1e-5), name


def test_the_same_seed_gives_the_same_numbers(
    policy_folder: Path, settings: LearnerSettings, conversations: pa.Table, responses: pa.Table
) -> None:
    def numbers(seed: int) -> tuple[dict[str, float], np.ndarray]:
        learner = Learner(settings, policy_folder, seed=seed)
        scores = np.linspace(0, 1, responses.num_rows, dtype=np.float32)
        metrics = Improvement(minibatch_conversations=3).run(learner.core, conversations, responses, scores)[1]
        timed = {"seconds", "tokens_per_second"}
        return {name: value for name, value in metrics.items() if name not in timed}, parameters_of(learner)

    (first, weights), (second, same), (third, _) = numbers(1), numbers(1), numbers(2)
    assert first == second
    assert np.array_equal(weights, same)
    assert first["policy_loss"] != third["policy_loss"]


def prefers_seven(tokens: list[int]) -> float:
    return float(tokens[0] == 7)


@pytest.mark.parametrize("estimator", ["ppo", "grpo", "reinforce"])
def test_what_scores_becomes_likelier(
    learner: Learner, conversations: pa.Table, estimator: str, sampled: Callable[..., pa.Table]
) -> None:
    spec = Improvement(estimator=estimator, learning_rate=3e-3, minibatch_conversations=3, kl=KL(coefficient=0.0))
    means = []
    for number in range(8):
        responses = sampled(learner, conversations, samples=6, seed=number)
        scores = np.array([prefers_seven(tokens) for tokens in responses["tokens"].to_pylist()], dtype=np.float32)
        means.append(spec.run(learner.core, conversations, responses, scores)[1]["score"])
    assert means[-1] > means[0] + 0.3, means


def test_a_strong_penalty_keeps_the_policy_near_its_reference(
    policy_folder: Path, settings: LearnerSettings, conversations: pa.Table, sampled: Callable[..., pa.Table]
) -> None:
    def divergence(**kl: object) -> float:
        learner = Learner(settings, policy_folder, seed=3)
        spec = Improvement(estimator="reinforce", learning_rate=3e-3, whiten=False, kl=KL(**kl))
        for number in range(5):
            responses = sampled(learner, conversations, samples=6, seed=number)
            scores = np.array([prefers_seven(tokens) for tokens in responses["tokens"].to_pylist()], dtype=np.float32)
            found = spec.run(learner.core, conversations, responses, scores)[1]["kl_reference"]
        return found

    free = divergence(coefficient=0.0)
    for kl in ({"kind": "k1", "place": "reward"}, {"kind": "k2", "place": "loss"}, {"kind": "k3", "place": "loss"}):
        assert divergence(coefficient=1.0, **kl) < 0.5 * free, kl


def test_references(learner: Learner, conversations: pa.Table, responses: pa.Table) -> None:
    scores = np.linspace(0, 1, responses.num_rows, dtype=np.float32)
    current = Improvement(epochs=1, minibatch_conversations=1000, kl=KL(reference="current"))
    Snapshot().run(learner.core)
    assert current.run(learner.core, conversations, responses, scores)[1]["kl_reference"] == pytest.approx(0, abs=1e-7)
    assert current.run(learner.core, conversations, responses, scores)[1]["kl_reference"] > 1e-6
    Snapshot().run(learner.core)
    assert current.run(learner.core, conversations, responses, scores)[1]["kl_reference"] == pytest.approx(0, abs=1e-7)
    initial = Improvement(epochs=1, minibatch_conversations=1000)
    assert initial.run(learner.core, conversations, responses, scores)[1]["kl_reference"] > 1e-6


def test_importance_weights_correct_for_stale_samplers_only(learner: Learner, conversations: pa.Table) -> None:
    responses = answer(conversations, seed=2, samples=2, version=5)
    scores = np.linspace(0, 1, responses.num_rows, dtype=np.float32)
    spec = Improvement(epochs=1, minibatch_conversations=1000, importance_cap=1.5)
    learner.weights(4)
    stale = spec.run(learner.core, conversations, responses, scores)[1]["importance_weight"]
    assert 0 < stale < 1.5
    assert stale != 1.0
    learner.weights(5)
    assert spec.run(learner.core, conversations, responses, scores)[1]["importance_weight"] == 1.0
    assert spec.run(learner.core, conversations, responses, scores)[1]["importance_weight"] != 1.0, (
        "the policy has moved"
    )


def test_an_update_moves_the_policy_no_further_than_its_bound(
    settings: LearnerSettings, policy_folder: Path, conversations: pa.Table, responses: pa.Table
) -> None:
    scores = np.linspace(0, 1, responses.num_rows, dtype=np.float32)

    def update(limit: float | None) -> tuple[Numbers, Learner]:
        learner = Learner(settings, policy_folder, seed=3)
        spec = Improvement(epochs=10, minibatch_conversations=4, learning_rate=1e-2, kl_limit=limit)
        return spec.run(learner.core, conversations, responses, scores)[1], learner

    free, _ = update(None)
    assert free["kl_update"] > 0.1 and free["step_fraction"] == 1.0
    bound, learner = update(0.01)
    assert 0 < bound["kl_update"] <= 0.01 and bound["step_fraction"] < 1.0
    assert bound["policy_steps"] == free["policy_steps"]
    numbers = Improvement(learning_rate=1e-9).run(learner.core, conversations, responses, scores)[1]
    assert numbers["kl_update"] < 1e-5, "the distance of an update is measured from where it started"
    wide, _ = update(1e3)
    assert wide["step_fraction"] == 1.0 and wide["kl_update"] == free["kl_update"]


def test_a_policy_with_entropy_bonus_stays_more_random(
    policy_folder: Path, settings: LearnerSettings, conversations: pa.Table, responses: pa.Table
) -> None:
    scores = np.linspace(0, 1, responses.num_rows, dtype=np.float32)

    def entropy(bonus: float) -> float:
        learner = Learner(settings, policy_folder, seed=3)
        spec = Improvement(epochs=4, learning_rate=3e-3, entropy_bonus=bonus)
        spec.run(learner.core, conversations, responses, scores)
        return spec.run(learner.core, conversations, responses, scores)[1]["entropy"]

    assert entropy(0.5) > entropy(0.0) + 0.02


def test_the_critic_learns_to_explain_its_returns(
    learner: Learner, conversations: pa.Table, responses: pa.Table
) -> None:
    scores = np.array([float(tokens[0] > 30) for tokens in responses["tokens"].to_pylist()], dtype=np.float32)
    spec = Improvement(epochs=15, critic_learning_rate=3e-3, learning_rate=1e-6)
    assert spec.run(learner.core, conversations, responses, scores)[1]["explained_variance"] == pytest.approx(
        0, abs=0.05
    )
    assert spec.run(learner.core, conversations, responses, scores)[1]["explained_variance"] > 0.3


def test_nonsense_is_refused(learner: Learner, conversations: pa.Table, responses: pa.Table) -> None:
    with pytest.raises(ConfigurationError, match="Q has not been fitted"):
        Improvement().run(learner.core, conversations, responses)
    with pytest.raises(DataError, match="finite scores"):
        Improvement().run(learner.core, conversations, responses, np.full(responses.num_rows, np.nan))
    with pytest.raises(DataError, match="no responses"):
        Improvement().run(learner.core, conversations, responses.slice(0, 0), np.zeros(0))
    with pytest.raises(ValueError, match="k1 as a loss"):
        KL(place="loss", kind="k1")


def test_larger_micro_batches_give_the_same_step(policy_folder: Path, conversations: pa.Table) -> None:
    responses = answer(talk(seed=1, count=12), seed=2, samples=4)
    scores = np.linspace(0, 1, responses.num_rows, dtype=np.float32)
    spec = Improvement(epochs=1, minibatch_conversations=1000)
    weights = []
    for budget in (64, 100_000):
        learner = Learner(LearnerSettings(threads=1, tokens_per_microbatch=budget), policy_folder, seed=3)
        spec.run(learner.core, conversations, responses, scores)
        weights.append(parameters_of(learner))
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-5)
