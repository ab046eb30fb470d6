"""A Llama of 20,000 parameters with rotary positions, and conversations and responses out of a random number generator."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mtrl_ray.config import LearnerSettings
from mtrl_ray.conversation import Conversation, Role, StopReason, Turn, from_table, to_table
from mtrl_ray.learner.learner import Learner
from mtrl_ray.responses import RESPONSES

VOCABULARY = 64


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
    return LearnerSettings(threads=1, device="cpu", tokens_per_microbatch=256)


@pytest.fixture
def learner(policy_folder: Path, settings: LearnerSettings) -> Learner:
    """A fresh learner."""
    return Learner(settings, policy_folder, seed=3)


def talk(seed: int, count: int, prefix: str = "c") -> pa.Table:
    """`count` conversations of 1 to 4 agent turns with rewards; the last token of a turn says what the reward will be."""
    generator = np.random.default_rng(seed)
    talks = []
    for number in range(count):
        turns = [Turn(Role.SYSTEM, "s", tokens=generator.integers(5, VOCABULARY, generator.integers(2, 9)).tolist())]
        for _ in range(generator.integers(1, 5)):
            turns.append(
                Turn(Role.USER, "u", tokens=generator.integers(5, VOCABULARY, generator.integers(1, 8)).tolist())
            )
            good = bool(generator.random() < 0.5)
            said = [*generator.integers(5, VOCABULARY, generator.integers(1, 6)).tolist(), 1 if good else 2]
            turns.append(agent_turn(said, reward=float(good)))
        turns.append(Turn(Role.USER, "bye", tokens=[3, 4]))
        talks.append(Conversation(f"{prefix}{number}", "test", "train", f"x{number}", turns, 0.5, StopReason.OUTCOME))
    return to_table(talks)


def agent_turn(tokens: list[int], reward: float = 0.0) -> Turn:
    """An agent's turn with log-probabilities of no meaning."""
    return Turn(
        Role.AGENT, "a", tokens=tokens, logprobs=[-1.0] * len(tokens), versions=[0] * len(tokens), reward=reward
    )


def answer(conversations: pa.Table, seed: int, samples: int, version: int = 5, every: int = 1) -> pa.Table:
    """`samples` responses of 1 to 6 tokens on every `every`-th state, in an order that is not the conversations'."""
    generator = np.random.default_rng(seed)
    states = [(talked.id, turn) for talked in from_table(conversations) for turn in talked.agent_turns][::every]
    rows = [
        {
            "conversation_id": identity,
            "turn": turn,
            "sample": sample,
            "tokens": (tokens := generator.integers(5, VOCABULARY, generator.integers(1, 7)).tolist()),
            "logprobs": (-3.0 - generator.random(len(tokens))).tolist(),
            "versions": [version] * len(tokens),
            "finish": "stop",
            "text": "",
        }
        for identity, turn in states
        for sample in range(samples)
    ]
    shuffled = [rows[index] for index in generator.permutation(len(rows))]
    return pa.Table.from_pylist(shuffled, schema=RESPONSES)


@pytest.fixture
def conversations() -> pa.Table:
    """Twelve conversations."""
    return talk(seed=1, count=12)


@pytest.fixture
def responses(conversations: pa.Table) -> pa.Table:
    """Four responses on each of their states."""
    return answer(conversations, seed=2, samples=4)
