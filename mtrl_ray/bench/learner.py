"""The learner's training speed relative to the bare model, and the speedup of tree packing.

1. The learner trains the tiny model on conversations as they come from `sales`: Arrow tables, lengths of about 60 to 250
   tokens, loss on the agent's tokens only. Reading the tables, packing, losses, clipping and statistics are in the time.
2. The bare model does forward, backward and step on dense rows without padding: as many tokens per step, as many steps,
   the same share of tokens with loss, the output layer at those only, the same optimiser and clipping.
3. The two alternate within one run, and medians are reported: so other load on the machine affects both.
4. `tree_speedup`: one improvement on K responses in every state, packed as trees, against one sequence per response.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, from_table, to_table
from mtrl_ray.dialogue.responses import RESPONSES
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.improvement import Improvement
from mtrl_ray.learner.methods.sft import SFT
from mtrl_ray.learner.rows.tables import Dialogues
from mtrl_ray.monitoring.heartbeat import Steps
from mtrl_ray.settings.tree import LearnerSettings

VOCABULARY = 768
MINIBATCH = 64
"""Conversations per step."""


def bench_learner(
    rounds: int = 5,
    conversations: int = 256,
    samples: int = 4,
    threads: int = 1,
    seed: int = 0,
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Medians over `rounds` alternations; `say` gets a line per step.

    Keys `ratio`, `trained_tokens_per_second`, `bare_tokens_per_second` (all tokens of the conversations count, not only the
    agent's), `loss_share`, `tree_speedup`, `responses_per_second` (as trees).
    """
    talks = talk(conversations, seed)
    dialogues = Dialogues.read(talks)
    tokens, share = len(dialogues.tokens), len(dialogues.agent_tokens) / len(dialogues.tokens)
    with tempfile.TemporaryDirectory(prefix="mtrl-bench-") as folder:
        tiny_llama(Path(folder))
        learner = Learner(LearnerSettings(threads=threads), folder, seed=seed)
        bare = Bare(Path(folder), tokens, conversations, share, seed)
    once = SFT(minibatch_conversations=MINIBATCH)
    trained, dense = alternate({"learner": lambda: once.run(learner.core, talks), "bare model": bare.run}, rounds, say)
    responses = answer(talks, samples, seed)
    scores = np.random.default_rng(seed).random(responses.num_rows).astype(np.float32)
    whole = learner.core.branch_tokens

    def improve(branch_tokens: int) -> None:
        learner.core.branch_tokens = branch_tokens
        Improvement(estimator="reinforce", epochs=1).run(learner.core, talks, responses, scores)

    trees, sequences = alternate(
        {"responses as trees": lambda: improve(whole), "responses as sequences": lambda: improve(0)}, rounds, say
    )
    return {
        "ratio": dense / trained,
        "trained_tokens_per_second": tokens / trained,
        "bare_tokens_per_second": tokens / dense,
        "loss_share": share,
        "tree_speedup": sequences / trees,
        "responses_per_second": responses.num_rows / trees,
        "conversations": conversations,
        "tokens": tokens,
        "samples": samples,
        "threads": threads,
        "rounds": rounds,
    }


def alternate(
    actions: dict[str, Callable[[], object]], rounds: int, say: Callable[[str], object] = lambda line: None
) -> list[float]:
    """Median seconds of each action, taken in turn `rounds` times after one untimed turn."""
    seconds: list[list[float]] = [[] for _ in actions]
    steps = Steps((rounds + 1) * len(actions), say)
    for number in range(rounds + 1):
        for (name, action), found in zip(actions.items(), seconds, strict=True):
            steps.begin(name if number else f"{name}, untimed")
            started = time.perf_counter()
            action()
            if number:
                found.append(time.perf_counter() - started)
    return [statistics.median(found) for found in seconds]


class Bare:
    """The model alone, on dense rows as long as the conversations are on average."""

    def __init__(self, folder: Path, tokens: int, rows: int, share: float, seed: int) -> None:
        self._model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._adam = torch.optim.AdamW(self._model.parameters(), lr=1e-3, fused=True)
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, VOCABULARY, (rows, tokens // rows + 1), generator=generator)
        self._steps = []
        for part in ids.split(MINIBATCH):
            places = torch.rand(part[:, 1:].shape, generator=generator) < share
            self._steps.append((part, places.flatten().nonzero()[:, 0]))

    def run(self) -> None:
        """One pass over the rows."""
        for ids, places in self._steps:
            states = self._model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
            logits = self._model.lm_head(states.flatten(0, 1).index_select(0, places))
            loss = cross_entropy(logits, ids[:, 1:].flatten()[places])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            self._adam.step()
            self._adam.zero_grad()


def tiny_llama(folder: Path) -> None:
    """A random Llama of the tiny model's size: 2 layers of 128, heads of 32, half a million parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def talk(count: int, seed: int) -> pa.Table:
    """Conversations of random tokens: system prompt, then user and agent in turn, lognormal lengths."""
    generator = np.random.default_rng(seed)
    return to_table(_conversation(number, generator) for number in range(count))


def _conversation(number: int, generator: np.random.Generator) -> Conversation:
    length = int(np.clip(generator.lognormal(4.8, 0.35), 60, 250))
    turns = [_turn(Role.SYSTEM, 20, generator)]
    while sum(len(turn.tokens) for turn in turns) < length:
        turns.append(_turn(Role.USER, int(generator.integers(8, 18)), generator))
        turns.append(_turn(Role.AGENT, int(generator.integers(6, 16)), generator))
    turns[-1].reward = 1.0
    return Conversation(f"bench-{number}", "bench", "train", str(number), turns, 1.0, StopReason.OUTCOME)


def _turn(role: Role, tokens: int, generator: np.random.Generator) -> Turn:
    return Turn(role, "", tokens=generator.integers(5, VOCABULARY, tokens).tolist())


def answer(talks: pa.Table, samples: int, seed: int) -> pa.Table:
    """`samples` responses of random tokens in every state."""
    generator = np.random.default_rng(seed)
    rows = []
    for talked in from_table(talks):
        for turn in talked.agent_turns:
            for sample in range(samples):
                tokens = generator.integers(5, VOCABULARY, generator.integers(6, 16)).tolist()
                rows.append((talked.id, turn, sample, tokens, [-6.6] * len(tokens), [0] * len(tokens), "stop", ""))
    columns = dict(zip(RESPONSES.names, map(list, zip(*rows, strict=True)), strict=True))
    return pa.table(columns, schema=RESPONSES)
