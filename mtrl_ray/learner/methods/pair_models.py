"""Two models of preferences between whole conversations: a preference model and a Bradley-Terry reward model.

1. Both are value models with one number per item and two items per pair, and both say `P(x ≻ y) = σ(v_0 - v_1)`:
   `reward` reads each conversation at its end, v = (R(x), R(y)); `preference` reads the two one after the other, in either
   order, v = (g(x, y), g(y, x)). So `P(y ≻ x) = 1 - P(x ≻ y)` by construction, and only `preference` can be cyclic.
2. The loss is the cross-entropy of P with the given preference, a probability, per pair. Its derivative by v_0 is
   `(P - p) / pairs`, by v_1 the negative: a step first evaluates the minibatch, then trains `Σ v · derivative`. A pair may
   therefore be spread over micro-batches and processes.
3. Pairs are rows of a table, the two members next to each other (`feedback.preferences`); p is given for each member.
4. `PairFit` predicts the pairs before it is fitted on them: its accuracy and calibration are those of pairs it has not
   seen. `PairQuality` predicts and fits nothing.
"""

import time
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.compute.epochs import means, run_epochs
from mtrl_ray.learner.compute.passes import LossFunction, Outputs
from mtrl_ray.learner.methods.values import calibration_error
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.packing import Rows, conversation_ends, conversation_pairs, response_ends
from mtrl_ray.learner.rows.tables import Dialogues, Responses, Tables
from mtrl_ray.learner.sections import Fit

PairModel = Literal["preference", "reward"]
"""A preference model reads two conversations, a Bradley-Terry reward model one."""
LOGIT_BOUND = 30.0
"""Largest |v_0 - v_1| in an exponential."""


class PairFit(Fit, Operation[None], epochs=1, learning_rate=5e-4):
    """Regression of a preference or reward model on pairs of conversations (2405.14655 §4.1).

    run: pairs; preferred, float32 [conversations], the probability of each to be preferred to its partner; the model's name.
    Numbers: means over the steps of `loss` (nats per pair) and `gradient_norm`; `skipped`, `pairs`, `seconds`; and of its
    predictions before the fit: `accuracy`, `calibration`, `cross_entropy`, and the preferences' own `entropy`.
    """

    doing: ClassVar[str] = "fitting a model of preferences"

    def run(self, core: Core, pairs: Tables, preferred: np.ndarray, model: PairModel) -> tuple[None, Numbers]:
        """See the class."""
        started = time.perf_counter()
        core.models.value(model)
        rows, given = _with_preferences(core, Dialogues.read(pairs), preferred, model)
        before = quality(probabilities(core.evaluate(model, rows)["values"]), given)

        def step(selection: np.ndarray) -> Numbers:
            return core.update(model, rows, selection, pair_loss(core, rows, selection, given, model), self.step)

        history = run_epochs(rows, core.generator(f"fit_{model}"), self, step)
        return None, means(history) | before | {"pairs": len(given) / 2, "seconds": time.perf_counter() - started}


@dataclass(frozen=True)
class PairQuality(Operation[None]):
    """How a model, as it is, predicts pairs that it is not fitted on.

    run: pairs, preferred (as for `PairFit`). Numbers: `pairs`, `accuracy`, `calibration`, `cross_entropy`, and the
    preferences' own `entropy`. Raises ConfigurationError if there is no such model.
    """

    model: PairModel

    def run(self, core: Core, pairs: Tables, preferred: np.ndarray) -> tuple[None, Numbers]:
        """See the class."""
        require(core, self.model)
        rows, given = _with_preferences(core, Dialogues.read(pairs), preferred, self.model)
        numbers = quality(probabilities(core.evaluate(self.model, rows)["values"]), given)
        return None, numbers | {"pairs": len(given) / 2}


@dataclass(frozen=True)
class Preferences(Operation[np.ndarray]):
    """Each conversation's probability to be preferred to its partner, as a model sees it, float32 [conversations].

    run: pairs. Raises ConfigurationError if there is no such model.
    """

    model: PairModel

    def run(self, core: Core, pairs: Tables) -> tuple[np.ndarray, Numbers]:
        """See the class."""
        require(core, self.model)
        rows = pair_rows(core, Dialogues.read(pairs), self.model)
        return probabilities(core.evaluate(self.model, rows)["values"]).astype(np.float32), {}


@dataclass(frozen=True)
class ConversationRewards(Operation[np.ndarray]):
    """The reward model's score of each conversation, in log-odds, float32 [conversations].

    run: conversations. Raises ConfigurationError if there is no reward model.
    """

    def run(self, core: Core, conversations: Tables) -> tuple[np.ndarray, Numbers]:
        """See the class."""
        require(core, "reward")
        return core.evaluate("reward", conversation_ends(Dialogues.read(conversations)))["values"], {}


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
    core: Core, dialogues: Dialogues, preferred: np.ndarray, model: PairModel
) -> tuple[Rows, np.ndarray]:
    rows = pair_rows(core, dialogues, model)
    given = np.asarray(preferred, dtype=np.float64)
    if len(given) != len(dialogues) or not ((given >= 0) & (given <= 1)).all():
        raise DataError(f"{len(dialogues)} conversations need as many preferences in [0, 1]; {len(given)} were given")
    return rows, given


def require(core: Core, model: PairModel) -> None:
    """Raises ConfigurationError if the model has not been made."""
    if model not in core.models:
        raise ConfigurationError(f"there is no {model} model yet; run PairFit, or adopt one from a folder")


def pair_rows(core: Core, dialogues: Dialogues, model: PairModel) -> Rows:
    """What the model reads of the pairs: items 2k and 2k + 1 belong to pair k. Raises DataError for half a pair,
    ConfigurationError if two conversations are longer than the model's positions."""
    if len(dialogues) % 2 or not len(dialogues):
        raise DataError(f"{len(dialogues)} conversations are no pairs; they have to come two by two")
    if model == "reward":
        rows = conversation_ends(dialogues)
        return replace(rows, unit=rows.unit // 2)
    rows = conversation_pairs(dialogues)
    positions = getattr(core.models.network.config, "max_position_embeddings", None)
    if positions is not None and int(rows.lengths.max()) > positions:
        raise ConfigurationError(
            f"two conversations of a pair have {int(rows.lengths.max())} tokens and the model has {positions} positions; "
            "use the reward model, which reads one at a time, or a model with a longer context"
        )
    return rows


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
