"""Conversations to put into a replay buffer, and what the tests ask of its tables."""

from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mtrl_ray.dialogue.conversation import Conversation, Finish, Role, StopReason, Turn, to_table
from mtrl_ray.replay.buffer import ReplayBuffer


def conversation(name: str, iteration: int = 0, turns: int = 2, seed: int = 0, **changes: Any) -> Conversation:
    rng = np.random.default_rng([seed, iteration, *name.encode()])
    said = [Turn(Role.SYSTEM, "Sell.", rng.integers(0, 99, 4).tolist())]
    for number in range(turns):
        length = int(rng.integers(1, 9))
        said.append(Turn(Role.USER, f"Question {number}?", rng.integers(0, 99, int(rng.integers(1, 9))).tolist()))
        said.append(
            Turn(
                Role.AGENT,
                f"Answer {number}.",
                rng.integers(0, 99, length).tolist(),
                rng.normal(size=length).astype(np.float32).tolist(),
                [iteration + number] * length,
                Finish.STOP,
                reward=float(number),
            )
        )
    fields: dict[str, Any] = {"score": 0.5, "context_id": name, "metrics": {"points": 2.0}, **changes}
    return Conversation(
        name, "sales", "train", turns=said, stop=StopReason.OUTCOME, iteration=iteration, seed=seed, **fields
    )


def batch(iteration: int, size: int = 4, **changes: Any) -> list[Conversation]:
    return [conversation(f"run/{iteration}/{number}", iteration, **changes) for number in range(size)]


def ref(conversations: list[Conversation]) -> ray.ObjectRef:
    return ray.put(to_table(conversations))


def ids(table: pa.Table) -> list[str]:
    return table["id"].to_pylist()


def dropped(buffer: ReplayBuffer) -> dict[str, float]:
    counts = {name: count for name, count in buffer.statistics().items() if name.startswith("dropped_") and count}
    return {name.removeprefix("dropped_"): count for name, count in counts.items()}
