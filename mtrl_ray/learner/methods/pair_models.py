"""Two models of preferences between whole conversations: a preference model and a Bradley-Terry reward model.

Both are value models with one number per item and two items per pair, and both say `P(x ≻ y) = σ(v_0 - v_1)`. `reward` reads
each conversation at its end, v = (R(x), R(y)). `preference` reads the two one after the other, in either order, v = (g(x, y),
g(y, x)). So `P(y ≻ x) = 1 - P(x ≻ y)` by construction, and only `preference` can be cyclic.

The loss is the cross-entropy of P with the given preference, a probability, per pair. Its derivative by v_0 is `(P - p) /
pairs`, by v_1 the negative: a step first evaluates the minibatch, then trains `Σ v · derivative`. A pair may therefore be
spread over micro-batches and processes.

- Pairs are rows of a table, the two members next to each other (`feedback.preferences`); p is given for each member.
- A pair longer than the model's positions, or than a micro-batch (`learner.tokens_per_microbatch`), is left out and counted:
  its cost is the square of its length. `Preferences` and `ConversationRewards` give it NaN (`feedback.preferences.scored`).
- `PairFit` predicts the pairs before it is fitted on them, so its accuracy and calibration are those of pairs it has not seen.
  `PairQuality` predicts and fits nothing.
"""

import time
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from torch import Tensor

from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.learner.compute.core import Core, LossFunction, Outputs, means, run_epochs
from mtrl_ray.learner.methods.values import calibration_error
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.packing import Rows, conversation_ends, conversation_pairs, response_ends
from mtrl_ray.learner.rows.tables import Dialogues, Responses, Tables, as_table
from mtrl_ray.learner.sections import Fit

PairModel = Literal["preference", "reward"]
"""A preference model reads two conversations, a Bradley-Terry reward model one."""
LOGIT_BOUND = 30.0
"""Largest |v_0 - v_1| in an exponential."""


class PairFit(Fit, Operation[None], epochs=1, minibatch_conversations=24, learning_rate=5e-4):
    """Regression of a preference or reward model on pairs of conversations (2405.14655 §4.1).

    run: pairs; preferred, float32 [conversations], each one's probability of being preferred to its partner; the model's name.
    Numbers: means over the steps of `loss` (nats per pair) and `gradient_norm`; `skipped`, `pairs`, `too_long` (pairs that were
    left out), `seconds`; and of its predictions before the fit: `accuracy`, `calibration`, `cross_entropy`, and the
    preferences' own `entropy`.
    """

    doing: ClassVar[str] = "fitting a model of preferences"

    def run(self, core: Core, pairs: Tables, preferred: np.ndarray, model: PairModel) -> tuple[None, Numbers]:
        """See the class."""
        started = time.perf_counter()
        core.models.value(model)
        rows, given, too_long = _with_preferences(core, pairs, preferred, model)
        before = quality(probabilities(core.evaluate(model, rows)["values"]), given)

        def step(selection: np.ndarray) -> Numbers:
            return core.update(model, rows, selection, pair_loss(core, rows, selection, given, model), self.step)

        history = run_epochs(rows, core.generator(f"fit_{model}"), self, step)
        counts = {"pairs": len(given) / 2, "too_long": too_long}
        return None, means(history) | before | counts | {"seconds": time.perf_counter() - started}


@dataclass(frozen=True)
class PairQuality(Operation[None]):
    """How well the current model predicts pairs, without fitting it.

    run: pairs, preferred (as for `PairFit`). Numbers: `pairs`, `too_long`, `accuracy`, `calibration`, `cross_entropy`, and the
    preferences' own `entropy`. Raises ConfigurationError if there is no such model.
    """

    model: PairModel

    def run(self, core: Core, pairs: Tables, preferred: np.ndarray) -> tuple[None, Numbers]:
        """See the class."""
        require(core, self.model)
        rows, given, too_long = _with_preferences(core, pairs, preferred, self.model)
        numbers = quality(probabilities(core.evaluate(self.model, rows)["values"]), given)
        return None, numbers | {"pairs": len(given) / 2, "too_long": too_long}


@dataclass(frozen=True)
class Preferences(Operation[np.ndarray]):
    """The model's probability that each conversation is preferred to its partner, float32 [conversations]; NaN if the
    two are too long for it.

    run: pairs. Raises ConfigurationError if there is no such model.
    """

    model: PairModel

    def run(self, core: Core, pairs: Tables) -> tuple[np.ndarray, Numbers]:
        """See the class."""
        require(core, self.model)
        table, short = _short(core, as_table(pairs), self.model)
        preferred = np.full(len(short), np.nan, dtype=np.float32)
        if short.any():
            rows = pair_rows(Dialogues.read(table), self.model)
            preferred[short] = probabilities(core.evaluate(self.model, rows)["values"])
        return preferred, {}


@dataclass(frozen=True)
class ConversationRewards(Operation[np.ndarray]):
    """The reward model's score of each conversation, in log-odds, float32 [conversations]; NaN if it is too long for the model.

    run: conversations. Raises ConfigurationError if there is no reward model.
    """

    def run(self, core: Core, conversations: Tables) -> tuple[np.ndarray, Numbers]:
        """See the class."""
        require(core, "reward")
        table = as_table(conversations)
        short = _lengths(table) <= _longest(core)
        rewards = np.full(len(short), np.nan, dtype=np.float32)
        if short.any():
            rows = conversation_ends(Dialogues.read(table.filter(pa.array(short))))
            rewards[short] = core.evaluate("reward", rows)["values"]
        return rewards, {}


@dataclass(frozen=True)
class ResponseRewards(Operation[np.ndarray]):
    """The reward model's score of each conversation that ends with a response, in log-odds, float32 [responses].

    run: conversations, responses. Raises ConfigurationError if there is no reward model.
    """

    def run(self, core: Core, conversations: Tables, responses: Tables) -> tuple[np.ndarray, Numbers]:
        """See the class."""
        require(core, "reward")
        dialogues = Dialogues.read(conversations)
        rows = response_ends(dialogues, Responses.read(responses, dialogues), core.branch_tokens)
        return core.evaluate("reward", rows)["values"], {}


def _with_preferences(
    core: Core, pairs: Tables, preferred: np.ndarray, model: PairModel
) -> tuple[Rows, np.ndarray, float]:
    """Rows of the pairs that are short enough, their preferences, and the number of pairs that are too long."""
    table, short = _short(core, as_table(pairs), model)
    given = np.asarray(preferred, dtype=np.float64)
    if len(given) != len(short) or not ((given >= 0) & (given <= 1)).all():
        raise DataError(f"{len(short)} conversations need as many preferences in [0, 1]; {len(given)} were given")
    if not short.any():
        raise DataError(
            f"all {len(short) // 2} pairs are longer than the {_longest(core)} tokens that the {model} model may read; use the "
            "reward model, which reads one conversation at a time, a model with a longer context, or a greater "
            "learner.tokens_per_microbatch"
        )
    return pair_rows(Dialogues.read(table), model), given[short], float((~short).sum() / 2)


def _short(core: Core, pairs: pa.Table, model: PairModel) -> tuple[pa.Table, np.ndarray]:
    """The pairs that the model can read, and which of the conversations these are, bool [conversations].

    Raises DataError for a conversation without its partner.
    """
    lengths = _lengths(pairs)
    if len(lengths) % 2 or not len(lengths):
        raise DataError(f"{len(lengths)} conversations are no pairs; they have to come two by two")
    couples = lengths.reshape(-1, 2)
    read = couples.sum(axis=1) if model == "preference" else couples.max(axis=1)
    short = np.repeat(read <= _longest(core), 2)
    return (pairs if short.all() else pairs.filter(pa.array(short))), short


def _lengths(conversations: pa.Table) -> np.ndarray:
    """Tokens of each conversation, int64."""
    return np.diff(Dialogues.read(conversations).starts)


def _longest(core: Core) -> int:
    """Most tokens that a model of pairs reads at once."""
    positions = getattr(core.models.network.config, "max_position_embeddings", None)
    return core.budget if positions is None else min(positions, core.budget)


def require(core: Core, model: PairModel) -> None:
    """Raises ConfigurationError if the model has not been made."""
    if model not in core.models:
        raise ConfigurationError(f"there is no {model} model yet; run PairFit, or adopt one from a folder")


def pair_rows(dialogues: Dialogues, model: PairModel) -> Rows:
    """The pairs as rows for the model: items 2k and 2k + 1 belong to pair k."""
    if model == "preference":
        return conversation_pairs(dialogues)
    rows = conversation_ends(dialogues)
    return replace(rows, unit=rows.unit // 2)


def probabilities(values: np.ndarray) -> np.ndarray:
    """σ(v_0 - v_1) and σ(v_1 - v_0) of each pair, float64 [conversations], which sum to 1."""
    first, second = values[::2].astype(np.float64), values[1::2].astype(np.float64)
    half = 0.5 * np.tanh(0.5 * (first - second))
    return np.stack([0.5 + half, 0.5 - half], axis=1).ravel()


def pair_loss(core: Core, rows: Rows, selection: np.ndarray, given: np.ndarray, model: PairModel) -> LossFunction:
    """Rule 2: the loss of a minibatch, linear in the outputs, with the gradient of the cross-entropy per pair."""
    items = rows.items_of(selection)
    values = core.evaluate(model, rows, selection=selection)["values"]
    pairs = len(items) / 2
    slope = core.tensor(((probabilities(values) - given) / pairs).astype(np.float32))
    logits = np.clip(np.repeat(values[::2].astype(np.float64) - values[1::2], 2), -LOGIT_BOUND, LOGIT_BOUND)
    logits[1::2] *= -1.0
    entropies = core.tensor(((np.logaddexp(0.0, logits) - given * logits) / (2 * pairs)).astype(np.float32))

    def loss(outputs: Outputs, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return (outputs["values"] * slope[items]).sum(), {"loss": entropies[items].sum()}

    return loss


def quality(predicted: np.ndarray, given: np.ndarray) -> Numbers:
    """How predictions compare with preferences, both [conversations]: `accuracy` over pairs that are not even, half a
    point for an even prediction; `calibration`; `cross_entropy` per pair, and `entropy`, the least it can be."""
    decided = given[::2] != 0.5
    side = np.sign(predicted[::2] - 0.5)[decided] * np.sign(given[::2] - 0.5)[decided]
    numbers = {"accuracy": float((0.5 + 0.5 * side).mean())} if decided.any() else {}
    return numbers | {
        "calibration": calibration_error(predicted, given),
        "cross_entropy": _cross_entropy(given, predicted),
        "entropy": _cross_entropy(given, given),
    }


def _cross_entropy(given: np.ndarray, predicted: np.ndarray) -> float:
    tiny = np.finfo(np.float64).tiny
    return float(-(given * np.log(np.maximum(predicted, tiny))).sum() / (len(given) / 2))
