"""Preference and reward models from a log alone: fitted on a part of its pairs, judged on the rest (`mtrl fit-preferences`).

1. Pairs are two conversations on one context, neighbours in the order of their ids, compared by a judge; or what people
   compared, read from a file (`preferences.pairs`). The split is by context: no context is on both sides.
2. Conversations without the model's own token ids are encoded with its chat template. For the model `tiny` a tokenizer and
   a small Llama are made from the training part alone and taught to predict its agents, as for `mtrl fit-q`.
3. Of each model: accuracy on pairs that are not even, with its interval, and calibration of the predicted probabilities.
   `oracle` is what a judge who knows the given probabilities exactly would reach in cross-entropy.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mtrl_envs.preferences import Prefer
from mtrl_ray.dialogue.chat import chat_format
from mtrl_ray.dialogue.conversation import Conversation, from_table, to_table
from mtrl_ray.errors import DataError, EngineError
from mtrl_ray.feedback.pairs import Pair
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.pair_models import PairFit, PairModel, Preferences, quality
from mtrl_ray.learner.methods.sft import SFT
from mtrl_ray.models.blank import blank_model
from mtrl_ray.replay.split import held_out as is_held_out
from mtrl_ray.settings.tree import TINY, LearnerSettings, ModelSettings
from mtrl_ray.statistics.calibration import calibration
from mtrl_ray.statistics.estimates import mean_interval

KINDS: tuple[PairModel, ...] = ("preference", "reward")


def logged_pairs(table: pa.Table, prefer: Prefer) -> tuple[list[Pair], int]:
    """A log's pairs, compared, and how many could not be. Raises DataError where no context has two conversations."""
    talks = sorted(from_table(table), key=lambda one: (one.environment, one.split, one.context_id, one.id))
    pairs, failed, previous = [], 0, None
    for talked in talks:
        if previous is None or _context(previous) != _context(talked):
            previous = talked
            continue
        try:
            pairs.append(Pair(previous, talked, prefer(previous, talked)))
        except (DataError, EngineError) as error:
            failed, cause = failed + 1, error
        previous = None
    if not pairs:
        why = f"; the last of {failed} failures: {cause}" if failed else ""
        raise DataError(f"none of the log's {len(talks)} conversations could be compared with one on its context{why}")
    return pairs, failed


def fit_logged_preferences(
    pairs: list[Pair],
    model: ModelSettings,
    spec: PairFit,
    held_out: float,
    sft: SFT,
    seed: int,
    save: str | None,
) -> dict[str, Any]:
    """Fit both models on a part of the pairs, figures of both parts for `--json`; `save`: a folder for the models.

    Raises DataError where one of the parts has no pairs.
    """
    sides = [is_held_out(pair.first.context_id, held_out, seed) for pair in pairs]
    train = [pair for pair, side in zip(pairs, sides, strict=True) if not side]
    test = [pair for pair, side in zip(pairs, sides, strict=True) if side]
    with tempfile.TemporaryDirectory(prefix="mtrl-pairs-") as scratch:
        path = model.path
        if path == TINY and train:
            path = scratch
            blank_model(Path(path), model, [side for pair in train for side in (pair.first, pair.second)])
        parts = [_encoded(part, path, model) for part in (train, test)]
        (seen, given, _), (unseen, unseen_given, _) = parts
        if not (len(given) and len(unseen_given)):
            raise DataError(
                f"of {len(pairs)} pairs {len(given) // 2} are left to fit and {len(unseen_given) // 2} to judge; give more "
                "pairs, another --held-out, or a greater --context-length"
            )
        learner = Learner(LearnerSettings(), path, seed=seed)
        if model.path == TINY:
            learner.run(sft, seen)
        result: dict[str, Any] = {
            "pairs": {
                "train": len(given) // 2,
                "held_out": len(unseen_given) // 2,
                "left_out": sum(p[2] for p in parts),
            }
        }
        for kind in KINDS:
            _, fitted = learner.run(spec, seen, given, kind)
            result[kind] = {
                "fit_loss": fitted["loss"],
                "train": figures(learner.run(Preferences(kind), seen)[0], given),
                "held_out": figures(learner.run(Preferences(kind), unseen)[0], unseen_given),
            }
            if save is not None:
                learner.core.models.value(kind).save(Path(save) / kind)
    return result


def figures(predicted: np.ndarray, given: np.ndarray) -> dict[str, Any]:
    """Accuracy with its interval, calibration, cross-entropy and the oracle's; both float32 [conversations]."""
    first, truth = predicted[::2].astype(np.float64), given[::2].astype(np.float64)
    decided = truth != 0.5
    right = 0.5 + 0.5 * np.sign(first[decided] - 0.5) * np.sign(truth[decided] - 0.5)
    numbers = quality(predicted.astype(np.float64), given.astype(np.float64))
    return {
        "pairs": len(first),
        "accuracy": mean_interval(right).as_dict() if len(right) else None,
        "calibration": calibration(predicted, given).as_dict(),
        "cross_entropy": numbers["cross_entropy"],
        "oracle": numbers["entropy"],
    }


def _context(talked: Conversation) -> tuple[str, str, str]:
    return talked.environment, talked.split, talked.context_id


def _encoded(pairs: list[Pair], path: str, model: ModelSettings) -> tuple[pa.Table, np.ndarray, int]:
    """Pairs' table, preferences of its members, and how many pairs are left out: two that are too long together."""
    if not pairs:
        return to_table([]), np.zeros(0, dtype=np.float32), 0
    chat = chat_format(path)
    talks, given = [], []
    for pair in pairs:
        both = [chat.owned(side) for side in (pair.first, pair.second)]
        if sum(len(side.tokens) for side in both) <= model.context_length:
            talks += both
            given += [pair.preference, 1.0 - pair.preference]
    return to_table(talks), np.array(given, dtype=np.float32), len(pairs) - len(talks) // 2
