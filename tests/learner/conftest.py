"""A Llama of 20,000 parameters with rotary positions, a learner of it, conversations and responses."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mtrl_ray.dialogue.conversation import from_table
from mtrl_ray.learner.learner import Learner
from mtrl_ray.settings.tree import LearnerSettings
from tests.learner.examples import VOCABULARY, answer, talk


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, with weights far enough from zero for its predictions to depend on the whole history."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("policy")
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture
def settings() -> LearnerSettings:
    """One thread; micro-batches small enough that every minibatch has several."""
    return LearnerSettings(threads=1, tokens_per_microbatch=256)


@pytest.fixture
def learner(policy_folder: Path, settings: LearnerSettings) -> Learner:
    """A fresh learner."""
    return Learner(settings, policy_folder, seed=3)


@pytest.fixture
def conversations() -> pa.Table:
    """Twelve conversations."""
    return talk(seed=1, count=12)


@pytest.fixture
def responses(conversations: pa.Table) -> pa.Table:
    """Four responses on each of their states."""
    return answer(conversations, seed=2, samples=4)


@pytest.fixture
def sampled() -> Callable[..., pa.Table]:
    """A function that samples responses of four tokens from a learner's own policy in every state."""

    def sample(learner: Learner, conversations: pa.Table, samples: int, seed: int) -> pa.Table:
        table = answer(conversations, seed, samples, version=-1)
        talks = {one.id: one for one in from_table(conversations)}
        rows = table.to_pylist()
        histories = [talks[row["conversation_id"]].history(row["turn"]) for row in rows]
        lengths = torch.tensor([len(history) for history in histories])
        ids = torch.zeros(len(rows), int(lengths.max()) + 4, dtype=torch.int64)
        for line, history in zip(ids, histories, strict=True):
            line[: len(history)] = torch.tensor(history)
        generator = torch.Generator().manual_seed(seed)
        everyone = torch.arange(len(rows))
        for step in range(4):
            with torch.no_grad():
                logits = learner.core.models.network(ids).logits[everyone, lengths + step - 1]
            ids[everyone, lengths + step] = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        for row, line, length in zip(rows, ids.tolist(), lengths.tolist(), strict=True):
            row |= {"tokens": line[length : length + 4], "logprobs": [-1.0] * 4, "versions": [-1] * 4}
        return pa.Table.from_pylist(rows, schema=table.schema)

    return sample
