"""REFUEL's regression: its gradient against the closed form, its minimum on two answers, and what it refuses."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaForCausalLM

from mtrl_ray.dialogue.conversation import from_table
from mtrl_ray.dialogue.responses import RESPONSES
from mtrl_ray.errors import DataError
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.refuel import RefuelUpdate
from mtrl_ray.learner.rows.packing import response_tokens
from mtrl_ray.learner.rows.tables import Dialogues, Responses
from mtrl_ray.settings.tree import LearnerSettings
from tests.learner.examples import answer

ETA = 1.5


def pairs_on(conversations: pa.Table, seed: int = 2) -> tuple[pa.Table, np.ndarray]:
    """A pair of answers in every state, in an order that is not the conversations', and returns."""
    table = answer(conversations, seed=seed, samples=2)
    rows = sorted(table.to_pylist(), key=lambda row: (row["conversation_id"][::-1], row["turn"], row["sample"]))
    returns = np.random.default_rng(seed).random(len(rows)).astype(np.float32)
    return pa.Table.from_pylist(rows, schema=RESPONSES), returns


def log_probability(model: LlamaForCausalLM, history: list[int], tokens: list[int]) -> torch.Tensor:
    """log π of a whole answer."""
    ids = torch.tensor([history + tokens])
    predicted = model(ids).logits[0].log_softmax(-1)[len(history) - 1 : -1]
    return predicted.gather(1, torch.tensor(tokens)[:, None]).sum()


def test_the_gradient_is_that_of_the_squared_error(learner: Learner, policy_folder: Path, conversations: pa.Table):
    answers, returns = pairs_on(conversations)
    RefuelUpdate(eta=ETA, epochs=1, learning_rate=3e-3).run(learner.core, conversations, answers, returns)
    model = LlamaForCausalLM.from_pretrained(policy_folder)
    model.load_state_dict(learner.core.models.network.state_dict())
    start = LlamaForCausalLM.from_pretrained(policy_folder)
    rows = answers.to_pylist()
    for row in rows:  # as the first policy sampled them, so that the ratio is not 1
        history = {talk.id: talk for talk in from_table(conversations)}[row["conversation_id"]].history(row["turn"])
        with torch.no_grad():
            ids = torch.tensor([history + row["tokens"]])
            logits = start(ids).logits[0].log_softmax(-1)[len(history) - 1 : -1]
            row["logprobs"] = logits.gather(1, torch.tensor(row["tokens"])[:, None])[:, 0].tolist()
            row["old"], row["history"] = sum(row["logprobs"]), history
    errors = []
    for one, other, first, second in zip(rows[::2], rows[1::2], returns[::2], returns[1::2], strict=True):
        ratios = [log_probability(model, row["history"], row["tokens"]) - row["old"] for row in (one, other)]
        errors.append(((ratios[0] - ratios[1]) / ETA - float(first - second)).square())
    expected = torch.stack(errors).mean()
    expected.backward()
    norm = torch.cat([value.grad.flatten() for value in model.parameters()]).norm()
    table = pa.Table.from_pylist([{key: row[key] for key in RESPONSES.names} for row in rows], schema=RESPONSES)
    spec = RefuelUpdate(eta=ETA, epochs=1, minibatch_conversations=1000, max_gradient_norm=None)
    learner.core.references.sampled = lambda versions: True  # take the log-probabilities in the table for the start's
    _, numbers = spec.run(learner.core, conversations, table, returns)
    assert numbers["loss"] == pytest.approx(expected.item(), rel=1e-3) and numbers["log_ratio"] > 0.01
    assert numbers["gradient_norm"] == pytest.approx(float(norm), rel=1e-3)
    assert numbers["pairs"] == len(rows) / 2 and numbers["policy_steps"] == 1


def two_answers(conversations: pa.Table, returns: list[tuple[float, float]]) -> tuple[pa.Table, np.ndarray]:
    """One state, in which 5 and 6 are answered, once for each pair of returns."""
    first = from_table(conversations)[0]
    rows = [
        {
            "conversation_id": first.id,
            "turn": first.agent_turns[0],
            "sample": 2 * number + place,
            "tokens": [token],
            "logprobs": [-1.0],
            "versions": [5],
            "finish": "stop",
            "text": "",
        }
        for number, _ in enumerate(returns)
        for place, token in enumerate((5, 6))
    ]
    return pa.Table.from_pylist(rows, schema=RESPONSES), np.array(returns, dtype=np.float32).ravel()


@pytest.mark.parametrize("eta", [0.5, 2.0])
def test_two_answers_end_at_the_exponential_weights(learner: Learner, conversations: pa.Table, eta: float):
    """π(a) ∝ π_t(a) exp(η E G(a)): the noise of single returns is averaged out."""
    answers, returns = two_answers(conversations, [(1.0, 0.0), (1.0, 1.0), (0.0, 0.5), (1.0, 0.0)])
    dialogues = Dialogues.read(conversations)
    rows = response_tokens(dialogues, Responses.read(answers, dialogues))

    def odds() -> float:
        found = learner.core.evaluate("policy", rows)["logprobs"]
        return float(found[0] - found[1])

    before = odds()
    spec = RefuelUpdate(eta=eta, epochs=150, learning_rate=2e-3, max_gradient_norm=None)
    _, numbers = spec.run(learner.core, conversations, answers, returns)
    mean = returns.reshape(-1, 2).mean(axis=0)
    assert odds() - before == pytest.approx(eta * float(mean[0] - mean[1]), abs=0.02)
    gaps = returns[::2] - returns[1::2]
    assert numbers["explained"] == pytest.approx(1 - gaps.var() / np.square(gaps).mean(), abs=0.02)


def test_alike_returns_pull_nowhere_and_no_pairs_are_no_step(learner: Learner, conversations: pa.Table):
    answers, returns = pairs_on(conversations)
    before = learner.weights(1).buffer.copy()
    _, numbers = RefuelUpdate(epochs=1).run(learner.core, conversations, answers, np.full_like(returns, 0.5))
    assert numbers["gradient_norm"] == pytest.approx(0.0, abs=1e-4) and numbers["explained"] == 0.0
    np.testing.assert_allclose(learner.weights(2).buffer, before)
    _, numbers = RefuelUpdate().run(learner.core, conversations, answers.slice(0, 0), returns[:0])
    assert numbers == {"pairs": 0.0, "policy_steps": 0.0, "trained_tokens": 0.0}


def test_the_size_of_micro_batches_changes_nothing(policy_folder: Path, conversations: pa.Table):
    def numbers(budget: int) -> list[float]:
        learner = Learner(LearnerSettings(threads=1, tokens_per_microbatch=budget), policy_folder, seed=3)
        _, found = RefuelUpdate().run(learner.core, conversations, *pairs_on(conversations))
        return [found[name] for name in ("loss", "log_ratio", "gradient_norm", "explained", "kl_update")]

    np.testing.assert_allclose(numbers(64), numbers(16_384), atol=1e-3)


def test_what_is_no_pair_is_refused(learner: Learner, conversations: pa.Table):
    answers, returns = pairs_on(conversations)
    with pytest.raises(DataError, match="responses are no pairs; they have to come two by two, each two in one state"):
        RefuelUpdate().run(learner.core, conversations, answers.slice(1), returns[1:])
    shifted = answers.slice(1, answers.num_rows - 2)
    with pytest.raises(DataError, match="responses are no pairs"):
        RefuelUpdate().run(learner.core, conversations, shifted, returns[1:-1])
    with pytest.raises(DataError, match="need as many finite returns"):
        RefuelUpdate().run(learner.core, conversations, answers, returns[1:])
