"""Fitting the response-level Q on logged conversations, and predicting with it (2511.21638 §2.2).

1. Q of every agent turn of a conversation is read in one pass, at each turn's last token.
2. Targets: Monte Carlo returns; SARSA or TD(λ) along logged pairs, recomputed from a slowly moving copy of Q before
   every pass; or the expected backup from responses sampled in the next states.
3. Conversations that Q has never been fitted on are predicted first: r and the calibration error are therefore those
   of predictions about unseen conversations, made by the Q that has seen all earlier ones.
4. The loss is the squared error in units of the variance of the first targets, so 1 is what predicting their mean
   costs.

Arrays per agent turn are [agent turns], in the order of the table.
"""

import hashlib
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.learner.compute.core import Core, Name
from mtrl_ray.learner.compute.passes import Outputs, Step
from mtrl_ray.learner.rows.microbatches import balance
from mtrl_ray.learner.rows.packing import Rows, response_ends, turn_ends
from mtrl_ray.learner.rows.tables import Dialogues, Responses
from mtrl_ray.learner.specification import QFit
from mtrl_ray.objectives.returns import expected_backup_targets, monte_carlo_returns, td_lambda_targets

BINS = 10
"""Of the calibration error, with equally many predictions each."""


class Turns:
    """The agent's turns as a padded matrix [conversations, most turns], and back to [agent turns]."""

    def __init__(self, dialogues: Dialogues) -> None:
        conversation = dialogues.turn_conversation[dialogues.agent_turns]
        counts = torch.from_numpy(np.bincount(conversation, minlength=len(dialogues)))
        width = int(counts.max()) if len(counts) else 0
        self.mask = torch.arange(width) < counts[:, None]
        self.rewards = self.padded(dialogues.rewards[dialogues.agent_turns])

    def padded(self, values: np.ndarray) -> Tensor:
        """[agent turns] to [conversations, most turns], zero where there is no turn."""
        matrix = torch.zeros(self.mask.shape)
        matrix[self.mask] = torch.from_numpy(np.array(values, dtype=np.float32))
        return matrix

    def flat(self, matrix: Tensor) -> np.ndarray:
        """Back again, float32 [agent turns]."""
        return matrix[self.mask].float().numpy()

    def returns(self, discount: float) -> np.ndarray:
        """Monte Carlo returns, [agent turns]."""
        return self.flat(monte_carlo_returns(self.rewards, self.mask, discount))


def fit_q(
    core: Core, dialogues: Dialogues, responses: Responses | None, spec: QFit, fitted: set[int]
) -> dict[str, float]:
    """Fit Q; `fitted` remembers which conversations it has seen. See `Learner.fit_q` for what it returns."""
    started = time.perf_counter()
    rows, turns = turn_ends(dialogues), Turns(dialogues)
    if not len(rows):
        raise DataError("none of the conversations has an agent turn with tokens; there is nothing to fit Q on")
    if spec.target == "expected" and responses is None:
        raise ConfigurationError("the target 'expected' needs responses in the next states; give responses")
    returns = turns.returns(spec.discount)
    metrics = _evaluate_unseen(core, dialogues, rows, returns, spec, fitted)
    core.calibrate("q", returns)
    core.models.optimiser("q", spec.weight_decay)
    generator = core.generator("fit_q")
    parts = -(-len(rows) // spec.minibatch_conversations)
    history: list[dict[str, float]] = []
    for _ in range(spec.epochs):
        targets = core.tensor(_targets(core, dialogues, rows, turns, responses, spec))
        history = [
            _step(core, rows, selection, targets, spec) | {"weight": float(len(rows.items_of(selection)))}
            for selection in balance(rows, generator.permutation(rows.unit), parts)
        ]
    weights = [step["weight"] for step in history]
    return metrics | {
        "loss": float(np.average([step["loss"] for step in history], weights=weights)),
        "gradient_norm": float(np.mean([step["gradient_norm"] for step in history])),
        "skipped": float(core.models.optimiser("q").skipped),
        "return": float(returns.mean()),
        "conversations": float(len(rows)),
        "turns": float(len(rows.items)),
        "seconds": time.perf_counter() - started,
    }


def score(core: Core, dialogues: Dialogues, responses: Responses) -> np.ndarray:
    """Q of every response, float32 [responses]. Raises ConfigurationError where Q has not been fitted."""
    _require_q(core)
    return core.evaluate("q", response_ends(dialogues, responses, core.branch_tokens))["values"]


def predict_q(core: Core, dialogues: Dialogues, discount: float) -> pa.Table:
    """Q and return of every agent turn: columns conversation_id, turn, q, return."""
    _require_q(core)
    conversation = dialogues.turn_conversation[dialogues.agent_turns]
    return pa.table(
        {
            "conversation_id": pc.take(dialogues.ids, pa.array(conversation)),
            "turn": dialogues.agent_turn_numbers(),
            "q": core.evaluate("q", turn_ends(dialogues))["values"],
            "return": Turns(dialogues).returns(discount),
        }
    )


def calibration_error(predictions: np.ndarray, returns: np.ndarray) -> float:
    """Mean absolute difference of mean prediction and mean return over `BINS` bins of equally many predictions."""
    order = np.argsort(predictions, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    gaps = [abs(float(predictions[part].mean() - returns[part].mean())) * len(part) for part in parts]
    return sum(gaps) / len(order)


def _require_q(core: Core) -> None:
    if not core.models.has("q"):
        raise ConfigurationError("Q has not been fitted; call fit_q first, or give scores")


def _step(core: Core, rows: Rows, selection: np.ndarray, targets: Tensor, spec: QFit) -> dict[str, float]:
    unit, count = core.models.value("q").unit, len(rows.items_of(selection))

    def loss(outputs: Outputs, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        total = ((outputs["values"] - targets[items]) / unit).square().sum() / count
        return total, {"loss": total}

    return core.update("q", rows, selection, loss, Step(spec.learning_rate, spec.max_gradient_norm))


def _targets(
    core: Core, dialogues: Dialogues, rows: Rows, turns: Turns, responses: Responses | None, spec: QFit
) -> np.ndarray:
    """This pass's targets, float32 [agent turns]."""
    if spec.target == "monte_carlo":
        return turns.returns(spec.discount)
    core.models.follow(spec.target_rate)
    name: Name = "q" if spec.target_rate == 1.0 else "q_target"
    if spec.target == "expected" and responses is not None:
        found = core.evaluate(name, response_ends(dialogues, responses, core.branch_tokens))["values"]
        following = _next_values(dialogues, responses, found)
        matrix = expected_backup_targets(turns.rewards, turns.padded(following), turns.mask, spec.discount)
        return turns.flat(matrix)
    q = turns.padded(core.evaluate(name, rows)["values"])
    weight = 0.0 if spec.target == "sarsa" else spec.td_lambda
    return turns.flat(td_lambda_targets(turns.rewards, q, turns.mask, spec.discount, weight))


def _next_values(dialogues: Dialogues, responses: Responses, found: np.ndarray) -> np.ndarray:
    """Mean Q of the responses in the state after each agent turn, float32 [agent turns]; 0 after the last."""
    total = np.bincount(responses.turn, weights=found, minlength=len(dialogues.agent))
    count = np.bincount(responses.turn, minlength=len(dialogues.agent))
    turns = dialogues.agent_turns
    conversation = dialogues.turn_conversation[turns]
    has_next = np.append(conversation[1:] == conversation[:-1], False)[: len(turns)]
    following = np.append(turns[1:], 0)[: len(turns)]
    lacking = has_next & (count[following] == 0)
    if lacking.any():
        first = int(np.flatnonzero(lacking)[0])
        identity = dialogues.ids[int(conversation[first])].as_py()
        number = int(following[first] - dialogues.first_turn[conversation[first]])
        raise DataError(
            f"the target 'expected' needs a response on conversation {identity!r}, turn {number}; there is none"
        )
    mean = total[following] / np.maximum(count[following], 1)
    return np.where(has_next, mean, 0.0).astype(np.float32)


def _evaluate_unseen(
    core: Core, dialogues: Dialogues, rows: Rows, returns: np.ndarray, spec: QFit, fitted: set[int]
) -> dict[str, float]:
    """r and calibration error on conversations not fitted before, which are then remembered as fitted."""
    hashes = [_hash(identity) for identity in dialogues.ids.to_pylist()]
    unseen = np.array([number for number, name in enumerate(hashes) if name not in fitted], dtype=np.int64)
    first = not core.models.has("q")
    fitted.update(hashes)
    if first or not len(unseen) or not spec.evaluated_conversations:
        return {}
    chosen = core.generator("evaluate_q").permutation(unseen)[: spec.evaluated_conversations]
    turns = np.isin(dialogues.turn_conversation[dialogues.agent_turns], chosen)
    if not turns.any():
        return {}
    selection = np.flatnonzero(np.isin(rows.unit, chosen))
    predictions = core.evaluate("q", rows, selection=selection)["values"][turns]
    return quality(predictions, returns[turns]) | {"evaluated_turns": float(turns.sum())}


def quality(predictions: np.ndarray, returns: np.ndarray) -> dict[str, float]:
    """`calibration`, and `r`, Pearson's, which is left out where predictions or returns do not vary."""
    found = {"calibration": calibration_error(predictions, returns)}
    if predictions.std() > 0 and returns.std() > 0:
        found["r"] = float(np.corrcoef(predictions, returns)[0, 1])
    return found


def _hash(identity: str) -> int:
    """64 bits of a conversation's identity, signed, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big", signed=True)
