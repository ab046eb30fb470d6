"""Conversations and responses out of a random number generator."""

import numpy as np
import pyarrow as pa

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, from_table, to_table
from mtrl_ray.dialogue.responses import RESPONSES

VOCABULARY = 64


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


def grouped(seed: int, contexts: int, samples: int, prefix: str = "g") -> pa.Table:
    """`contexts` x `samples` conversations as `talk` makes them; the score is the share of turns that ended well.

    Their tokens were sampled by weights that no test has.
    """
    talks = from_table(talk(seed, contexts * samples, prefix))
    for number, talked in enumerate(talks):
        talked.context_id, talked.sample = f"x{number // samples}", number % samples
        talked.score = float(np.mean(talked.rewards))
        for turn in talked.agent_turns:
            talked.turns[turn].versions = [5] * len(talked.turns[turn].tokens)
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
