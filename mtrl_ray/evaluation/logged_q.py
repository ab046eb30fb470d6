"""Q from a log alone: fitted on a part of the conversations, judged on the rest, no policy update (`mtrl fit-q`).

1. Conversations are split by context; the ones without the model's own token ids are encoded with its chat template. For
   the model `tiny` a tokenizer and a small Llama are made from the training part alone and taught to predict its agents.
2. Q's predictions of held-out (state, response) pairs are compared with their returns: r with its interval, the
   calibration error, and the squared error relative to a constant.
3. `by_turn`: the same r over pairs at the same position only. Where returns depend on how far a conversation has come,
   a Q that only counts turns would already correlate; this one does not reward that.
"""

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mtrl_ray.dialogue.chat import chat_format
from mtrl_ray.dialogue.conversation import from_table, to_table
from mtrl_ray.errors import DataError
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.q import PredictQ, QFit
from mtrl_ray.learner.methods.sft import SFT
from mtrl_ray.models.blank import blank_model
from mtrl_ray.replay.split import split_table
from mtrl_ray.settings.tree import TINY, LearnerSettings, ModelSettings
from mtrl_ray.statistics.calibration import calibration
from mtrl_ray.statistics.estimates import correlation

FEWEST = 10
"""Pairs at one position below which they are left out of `by_turn`."""


def fit_logged_q(
    table: pa.Table, model: ModelSettings, spec: QFit, held_out: float, sft: SFT, seed: int
) -> dict[str, Any]:
    """Fit Q on a log's training part; figures on the held-out part for `--json`. Raises DataError for a log too small."""
    train, test = split_table(table, held_out, seed)
    if not (train.num_rows and test.num_rows):
        raise DataError(f"the log has {table.num_rows} conversations; a split at {held_out:.0%} leaves one part empty")
    with tempfile.TemporaryDirectory(prefix="mtrl-q-") as scratch:
        path = model.path
        if path == TINY:
            path = scratch
            blank_model(Path(path), model, from_table(train))
        (train, out), (test, out_too) = (_encoded(part, path, model.context_length) for part in (train, test))
        if not (train.num_rows and test.num_rows):
            raise DataError(
                f"{out + out_too} of the log's {table.num_rows} conversations are longer than {model.context_length} tokens, "
                "and too few are left to fit and to judge; give a greater --context-length"
            )
        learner = Learner(LearnerSettings(), path, seed=seed)
        _, tuned = learner.run(sft, train) if model.path == TINY else (None, {})
        _, fitted = learner.run(spec, train)
        seen, unseen = (learner.run(PredictQ(spec.discount), part)[0] for part in (train, test))
    return {
        "conversations": {"train": train.num_rows, "held_out": test.num_rows, "left_out": out + out_too},
        "language_model_loss": tuned.get("loss"),
        "fit_loss": fitted["loss"],
        "train": _quality(seen, seen),
        "held_out": _quality(unseen, seen) | {"by_turn": _by_turn(unseen)},
    }


def _encoded(table: pa.Table, path: str, context_length: int) -> tuple[pa.Table, int]:
    """The same in the model's token ids, and how many conversations are left out because they are longer than the context.

    Cut off, they would lack the outcome at their end, and so would every return before it.
    """
    chat = chat_format(path)
    encoded = [chat.owned(done) for done in from_table(table)]
    kept = [done for done in encoded if len(done.tokens) <= context_length]
    return to_table(kept), len(encoded) - len(kept)


def _quality(predictions: pa.Table, fitted: pa.Table) -> dict[str, Any]:
    """How predictions compare with returns; the constant they are measured against is the mean of the fitted ones."""
    q, returns = predictions["q"].to_numpy(), predictions["return"].to_numpy()
    constant = float(fitted["return"].to_numpy().mean())
    error, spread = (float(np.square(deviation).mean()) for deviation in (q - returns, returns - constant))
    return {
        "turns": len(q),
        "r": correlation(q, returns).as_dict(),
        "calibration_error": calibration(q, returns).error,
        "mean_squared_error": error,
        "explained_variance": 1.0 - error / spread if spread else float("nan"),
        "mean_return": float(returns.mean()),
        "return_deviation": float(returns.std()),
    }


def _by_turn(predictions: pa.Table) -> dict[str, float]:
    """r over pairs at the same position, averaged over positions by their number."""
    groups = defaultdict(list)
    columns = (predictions[name].to_pylist() for name in ("turn", "q", "return"))
    for turn, q, value in zip(*columns, strict=True):
        groups[turn].append((q, value))
    kept = [np.array(pairs) for pairs in groups.values() if len(pairs) >= FEWEST]
    kept = [pairs for pairs in kept if pairs.std(axis=0).min() > 0]
    if not kept:
        return {"r": float("nan"), "pairs": 0}
    sizes = [len(pairs) for pairs in kept]
    each = [float(np.corrcoef(pairs.T)[0, 1]) for pairs in kept]
    return {"r": float(np.average(each, weights=sizes)), "pairs": sum(sizes)}
