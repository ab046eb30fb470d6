"""Preference and reward models from a log alone: fitted on a part of its pairs, judged on the rest (`mtrl fit-preferences`).

1. Pairs are two conversations on one context, neighbours in the order of their ids, compared by a judge; or what people
   compared, read from a file (`feedback.pairs`). They are fitted or judged as `logged.parts` has their conversations: no
   context is on both sides.
2. Conversations without the model's own token ids are encoded with its chat template. For the model `tiny` a tokenizer and
   a small Llama are made from the training part alone and taught to predict its agents, as for `mtrl fit-q`.
3. Of each model: accuracy on pairs that are not even, and calibration of the predicted probabilities. The interval is over
   contexts (or their sources): pairs on one context, and several judgements of one pair, are a cluster.
   `oracle` is what a judge who knows the given probabilities exactly would reach in cross-entropy.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mtrl_envs.preferences import Prefer
from mtrl_ray.dialogue.chat import chat_format
from mtrl_ray.dialogue.conversation import Conversation, from_table, sources, to_table
from mtrl_ray.dialogue.tokens import ChatFormat
from mtrl_ray.errors import DataError, EngineError
from mtrl_ray.evaluation.logged import LeftOut, Parts, encoded, ending, parts
from mtrl_ray.feedback.pairs import Pair
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.pair_models import PairFit, PairModel, Preferences, quality
from mtrl_ray.learner.methods.sft import SFT
from mtrl_ray.models.blank import blank_model
from mtrl_ray.settings.tree import TINY, LearnerSettings, ModelSettings
from mtrl_ray.statistics.calibration import calibration
from mtrl_ray.statistics.estimates import mean_interval

KINDS: tuple[PairModel, ...] = ("preference", "reward")


def logged_pairs(table: pa.Table, prefer: Prefer) -> tuple[list[Pair], int]:
    """A log's pairs, compared, and how many could not be. Raises DataError if no context has two conversations."""
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


@dataclass(frozen=True)
class PairParts:
    """Pairs to fit, pairs to judge, and the parts of their conversations."""

    train: list[Pair]
    test: list[Pair]
    split: Parts


def pair_parts(pairs: list[Pair], test: list[Pair] | None, held_out: float | None, seed: int) -> PairParts:
    """As `logged.parts`, of pairs: `test`, if given, are those that are judged. Raises DataError if a part is empty."""
    split = parts(_members(pairs), None if test is None else _members(test), held_out, seed)
    fitted, judged = (set(part["id"].to_pylist()) for part in (split.train, split.test))
    return PairParts(
        [pair for pair in pairs if pair.first.id in fitted],
        [pair for pair in (pairs if test is None else test) if pair.first.id in judged],
        split,
    )


def fit_logged_preferences(
    pairs: PairParts,
    model: ModelSettings,
    spec: PairFit,
    sft: SFT,
    seed: int,
    save: str | None,
    say: Callable[[str], None] = lambda sentence: None,
    cut: bool = False,
) -> dict[str, Any]:
    """Fit both models on a part of the pairs, figures of both parts for `--json`; `save`: a folder for the models.

    `say`: told what is left out, before anything is fitted. `cut`: keep the ends of pairs that are too long. Raises DataError
    if too little is left.
    """
    with tempfile.TemporaryDirectory(prefix="mtrl-pairs-") as scratch:
        path, left_out = model.path, LeftOut("pairs")
        if path == TINY:
            path = scratch
            blank_model(Path(path), model, [side for pair in pairs.train for side in (pair.first, pair.second)])
        chat = chat_format(path)
        (seen, given), (unseen, unseen_given) = (
            _encoded(part, chat, model.context_length, left_out, cut) for part in (pairs.train, pairs.test)
        )
        for sentence in left_out.sentences(model.context_length):
            say(sentence)
        if not (len(given) and len(unseen_given)):
            raise DataError(
                f"of {left_out.total} pairs {len(given) // 2} are left to fit and {len(unseen_given) // 2} to judge; give more "
                "pairs, another --held-out, or a greater --context-length"
            )
        learner = Learner(LearnerSettings(gpus=int(torch.cuda.is_available())), path, seed=seed)
        if model.path == TINY:
            sft.run(learner.core, seen)
        counts = {
            "train": len(given) // 2,
            "held_out": len(unseen_given) // 2,
            "left_out": left_out.count,
            "cut": left_out.cut,
        }
        result: dict[str, Any] = {"pairs": counts, "split": pairs.split.how}
        for kind in KINDS:
            _, fitted = spec.run(learner.core, seen, given, kind)
            result[kind] = {
                "fit_loss": fitted["loss"],
                "train": figures(Preferences(kind).run(learner.core, seen)[0], given, sources(seen)[::2]),
                "held_out": figures(Preferences(kind).run(learner.core, unseen)[0], unseen_given, sources(unseen)[::2]),
            }
            if save is not None:
                learner.core.models.value(kind).save(Path(save) / kind)
    return result


def figures(predicted: np.ndarray, given: np.ndarray, clusters: Sequence[str]) -> dict[str, Any]:
    """Accuracy with its interval, calibration, cross-entropy and the oracle's.

    `predicted`, `given`: float32 [conversations]; `clusters`: what the context of each pair was made from [pairs].
    """
    first, truth = predicted[::2].astype(np.float64), given[::2].astype(np.float64)
    decided = truth != 0.5
    right = 0.5 + 0.5 * np.sign(first[decided] - 0.5) * np.sign(truth[decided] - 0.5)
    numbers = quality(predicted.astype(np.float64), given.astype(np.float64))
    known = [name for name, counts in zip(clusters, decided, strict=True) if counts]
    return {
        "pairs": len(first),
        "accuracy": mean_interval(right, clusters=known).as_dict() if len(right) else None,
        "calibration": calibration(predicted, given).as_dict(),
        "cross_entropy": numbers["cross_entropy"],
        "oracle": numbers["entropy"],
    }


def _members(pairs: list[Pair]) -> pa.Table:
    """The first side of every pair, each conversation once; the second is on the same context."""
    return to_table({pair.first.id: pair.first for pair in pairs}.values())


def _context(talked: Conversation) -> tuple[str, str, str]:
    return talked.environment, talked.split, talked.context_id


def _encoded(
    pairs: list[Pair], chat: ChatFormat, context_length: int, left_out: LeftOut, cut: bool = False
) -> tuple[pa.Table, np.ndarray]:
    """Pairs' table and the preferences of its members, without pairs that `chat` refuses or that are too long together.

    `cut`: of the latter, both sides lose their beginning, if an agent's turn is left of each.
    """
    talks, given = [], []
    for pair in pairs:
        sides = LeftOut()
        both = encoded((pair.first, pair.second), chat, sys.maxsize, cut=False, left_out=sides)
        length = sum(len(side.tokens) for side in both)
        left_out.total += 1
        if sides.causes:
            left_out.causes[next(iter(sides.causes))] += 1
        elif length > context_length and (shorter := _ends(both, chat, context_length) if cut else None) is not None:
            left_out.cut += 1
            talks += shorter
            given += [pair.preference, 1.0 - pair.preference]
        elif length > context_length:
            left_out.too_long += 1
            left_out.longest = max(left_out.longest, length)
        else:
            talks += both
            given += [pair.preference, 1.0 - pair.preference]
    return to_table(talks), np.array(given, dtype=np.float32)


def _ends(both: Sequence[Conversation], chat: ChatFormat, limit: int) -> list[Conversation] | None:
    """The ends of a pair, together at most `limit` tokens: half for each, and what a shorter side leaves for the other."""
    room = [max(limit // 2, limit - len(other.tokens)) for other in reversed(both)]
    kept = [
        side if len(side.tokens) <= most else ending(side, chat, most) for side, most in zip(both, room, strict=True)
    ]
    return None if any(side is None for side in kept) else [side for side in kept if side is not None]
