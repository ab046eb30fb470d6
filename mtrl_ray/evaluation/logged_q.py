"""Q from a log alone: fitted on a part of the conversations, judged on the rest, no policy update (`mtrl fit-q`).

1. The log's parts are `logged.parts`; conversations without the model's own token ids are encoded with its chat template. For
   the model `tiny` a tokenizer and a small Llama are made from the training part alone and taught to predict its agents.
2. Q's predictions of held-out (state, response) pairs are compared with their returns: r with its interval, the
   calibration error, and the squared error relative to a constant. The interval is over contexts (or their sources): the
   turns of one dialogue share their outcome.
3. `by_turn`: the same r over pairs at the same position only. If returns depend on how far a conversation has come,
   a Q that only counts turns would already correlate; this one does not reward that.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mtrl_ray.dialogue.chat import chat_format
from mtrl_ray.dialogue.conversation import from_table, sources, to_table
from mtrl_ray.errors import DataError
from mtrl_ray.evaluation.logged import LeftOut, Parts, encoded
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.q import PredictQ, QFit
from mtrl_ray.learner.methods.sft import SFT
from mtrl_ray.models.blank import blank_model
from mtrl_ray.settings.tree import TINY, LearnerSettings, ModelSettings
from mtrl_ray.statistics.calibration import calibration
from mtrl_ray.statistics.estimates import Estimate, correlation

FEWEST = 10
"""Pairs at one position below which they are left out of `by_turn`."""


def fit_logged_q(
    split: Parts,
    model: ModelSettings,
    spec: QFit,
    sft: SFT,
    seed: int,
    cut: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """Fit Q on a log's training part; figures on its test part for `--json`.

    `cut`: keep the end of conversations that are too long. `say`: told what is left out, before anything is fitted. Raises
    DataError if too little is left.
    """
    with tempfile.TemporaryDirectory(prefix="mtrl-q-") as scratch:
        path, left_out = model.path, LeftOut()
        if path == TINY:
            path = scratch
            blank_model(Path(path), model, from_table(split.train))
        chat = chat_format(path)
        train, test = (
            to_table(encoded(from_table(part), chat, model.context_length, cut, left_out))
            for part in (split.train, split.test)
        )
        for sentence in left_out.sentences(model.context_length):
            say(sentence)
        if not (train.num_rows and test.num_rows):
            raise DataError(
                f"of {left_out.total} conversations {train.num_rows} are left to fit and {test.num_rows} to judge: "
                f"{left_out.too_long} are longer than --context-length {model.context_length}, "
                f"{sum(left_out.causes.values())} cannot be read by the model"
            )
        learner = Learner(LearnerSettings(gpus=int(torch.cuda.is_available())), path, seed=seed)
        _, tuned = sft.run(learner.core, train) if model.path == TINY else (None, {})
        _, fitted = spec.run(learner.core, train)
        seen, unseen = (PredictQ(spec.discount).run(learner.core, part)[0] for part in (train, test))
    counts = {"train": train.num_rows, "held_out": test.num_rows, "left_out": left_out.count, "cut": left_out.cut}
    return {
        "conversations": counts,
        "split": split.how,
        "language_model_loss": tuned.get("loss"),
        "fit_loss": fitted["loss"],
        "train": _quality(seen, seen, _clusters(seen, train)),
        "held_out": _quality(unseen, seen, _clusters(unseen, test))
        | {"by_turn": _by_turn(unseen, _clusters(unseen, test)).as_dict()},
    }


def _clusters(predictions: pa.Table, conversations: pa.Table) -> np.ndarray:
    """The source of each prediction's conversation."""
    made_from = dict(zip(conversations["id"].to_pylist(), sources(conversations), strict=True))
    return np.array([made_from[name] for name in predictions["conversation_id"].to_pylist()], dtype=object)


def _quality(predictions: pa.Table, fitted: pa.Table, clusters: np.ndarray) -> dict[str, Any]:
    """How predictions compare with returns; the constant they are measured against is the mean of the fitted ones."""
    q, returns = predictions["q"].to_numpy(), predictions["return"].to_numpy()
    constant = float(fitted["return"].to_numpy().mean())
    error, spread = (float(np.square(deviation).mean()) for deviation in (q - returns, returns - constant))
    return {
        "turns": len(q),
        "r": correlation(q, returns, clusters=clusters).as_dict(),
        "calibration_error": calibration(q, returns).error,
        "mean_squared_error": error,
        "explained_variance": 1.0 - error / spread if spread else float("nan"),
        "mean_return": float(returns.mean()),
        "return_deviation": float(returns.std()),
    }


def _by_turn(predictions: pa.Table, clusters: np.ndarray) -> Estimate:
    """r over pairs at the same position, averaged over positions by their number."""
    q, returns, turns = (predictions[name].to_numpy() for name in ("q", "return", "turn"))
    known, place, counts = np.unique(turns, return_inverse=True, return_counts=True)
    kept = counts[place] >= FEWEST
    if not kept.any():
        return Estimate(float("nan"), -1.0, 1.0, 0)
    return correlation(q[kept], returns[kept], clusters=clusters[kept], strata=known[place][kept])
