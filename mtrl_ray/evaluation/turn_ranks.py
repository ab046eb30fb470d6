"""Does a process reward model rank turns early as it does in the end? (2603.23550, stability of turn-level rewards)

1. The same conversations are scored after the fits of many iterations: those of the run's first evaluation, which no fit
   sees. Each scoring is `turn_scores/ITERATION.parquet` in the run's folder, as `Learner.score_turns` gives it.
2. Within every conversation the turns are ranked by their rewards and compared with the ranks under the run's last
   model, by Spearman's ρ; likewise its tokens. A number is the mean over the conversations.
3. Conversations whose rewards are all equal, or that have a single turn (token), have no ranks and are left out.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtrl_ray.dialogue.conversation import completed
from mtrl_ray.errors import DataError
from mtrl_ray.processes.writing import writing

FOLDER = "turn_scores"
TURNS, TOKENS = "ranks/turns", "ranks/tokens"
"""Mean ρ of turns and of tokens to the last scoring."""
EARLY = "_early"
"""Added to a name: its mean over the first half of the scorings, the last one left out."""


def probed(folder: Path) -> pa.Table:
    """The conversations that are scored again and again. Raises DataError if the run was never evaluated."""
    path = folder / "evaluation" / "start.parquet"
    if not path.is_file():
        raise DataError(f"{str(path)!r} is missing: turn scores are kept of the first evaluation's conversations")
    return completed(pq.read_table(path))


def keep(folder: Path, iteration: int, scores: pa.Table) -> None:
    """Write one scoring; `iteration` is the number of iterations done with it. Raises EngineError."""
    path = folder / FOLDER / f"{iteration:05d}.parquet"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(scores, path)


def stability(folder: Path) -> dict[int, dict[str, float]]:
    """Iteration: mean ρ of turns and tokens to the last scoring; the last iteration also has the `_early` means.

    Empty if fewer than two scorings were kept; a number is left out if nothing has ranks.
    """
    kept = sorted((folder / FOLDER).glob("*.parquet"))
    if len(kept) < 2:
        return {}
    scorings = {int(path.stem): _by_conversation(pq.read_table(path)) for path in kept}
    last = max(scorings)
    found = {
        iteration: {name: _agreement(ours[place], scorings[last][place]) for place, name in enumerate((TURNS, TOKENS))}
        for iteration, ours in scorings.items()
    }
    earlier = [found[iteration] for iteration in sorted(scorings) if iteration != last]
    first_half = earlier[: -(-len(earlier) // 2)]
    for name in (TURNS, TOKENS):
        found[last][name + EARLY] = float(np.mean([one[name] for one in first_half]))
    return {
        iteration: {name: value for name, value in numbers.items() if np.isfinite(value)}
        for iteration, numbers in found.items()
    }


def _by_conversation(scores: pa.Table) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rewards of turns, and of tokens, of each conversation."""
    ids = scores["conversation_id"].to_numpy()
    begins = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
    turns = np.split(scores["reward"].to_numpy(), begins[1:])
    lists = scores["token_rewards"].combine_chunks()
    ends = lists.offsets.to_numpy()[begins[1:]] - lists.offsets[0].as_py()
    return turns, np.split(lists.flatten().to_numpy(), ends)


def _agreement(ours: Sequence[np.ndarray], last: Sequence[np.ndarray]) -> float:
    from scipy.stats import spearmanr  # slow to import, and every driver imports this module

    correlations = [
        spearmanr(one, other).statistic
        for one, other in zip(ours, last, strict=True)
        if len(one) > 1 and np.ptp(one) > 0 and np.ptp(other) > 0
    ]
    return float(np.mean(correlations)) if correlations else float("nan")
