"""The response-level Q: fitted on logged conversations, predicting them, scoring responses (2511.21638 §2.2).

- Q of every agent turn of a conversation is read in one pass, at each turn's last token.
- Targets are Monte Carlo returns; SARSA or TD(λ) along logged pairs, recomputed from a slowly moving copy of Q before every
  pass; or the expected backup from responses sampled in the next states.
- A conversation that was cut because the context window was full has no known return. The target of its last pair is Q's own
  estimate, r + γV = Q, which has no gradient, and earlier targets are computed back from it. An environment's own limit of
  turns is part of the task, so reaching it is a real end.
- Conversations that Q has never been fitted on are predicted first: r and the calibration error are therefore those of
  predictions about unseen conversations, made by the Q that was fitted on all earlier ones.
- The loss is the squared error in units of the variance of the targets, so predicting their mean has loss 1.

Arrays per agent turn are [agent turns], in the order of the table.
"""

import hashlib
import time
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field
from torch import Tensor

from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.learner.compute.core import Core, Outputs
from mtrl_ray.learner.methods.values import calibration_error
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.minibatches import minibatches
from mtrl_ray.learner.rows.packing import Rows, response_ends, turn_ends
from mtrl_ray.learner.rows.tables import Dialogues, Responses, Tables
from mtrl_ray.learner.sections import Fit
from mtrl_ray.objectives.returns import expected_backup_targets, monte_carlo_returns, td_lambda_targets

EVALUATED = 512
"""At most so many conversations are predicted before they are first fitted, for r and the calibration error."""


class QFit(Fit, Operation[None], epochs=4):
    """Regression of Q on returns or backups.

    run: conversations; responses in the next states, for the target `expected`, else None.
    Numbers: `loss` (of the last pass, in units of the variance of the targets), `return` (mean of the known ones),
    `turns`, `conversations`, `cut` (of these, by the context window), `gradient_norm`, `skipped`, `seconds`; and of
    conversations that Q was never fitted on, predicted before this fit: `r`, `calibration`, `evaluated_turns` (absent in the
    first fit of all).
    Raises DataError if there is nothing to fit, ConfigurationError if responses are missing.
    """

    doing: ClassVar[str] = "fitting Q"

    target: Literal["monte_carlo", "sarsa", "td_lambda", "expected"] = "monte_carlo"
    """`monte_carlo`: returns; `sarsa`: one-step backup along logged pairs; `td_lambda`: between the two; `expected`:
    backup from the mean Q of responses sampled in the next states, for data of another policy."""
    discount: float = Field(0.95, ge=0, le=1)
    """γ per agent turn."""
    td_lambda: float = Field(0.9, ge=0, le=1)
    """λ of the target `td_lambda`: 0 is sarsa, 1 is monte_carlo."""
    target_rate: float = Field(1.0, gt=0, le=1)
    """Share of the new weights that backups move to before each pass; 1: backups use the weights at its start."""

    def run(self, core: Core, conversations: Tables, responses: Tables | None = None) -> tuple[None, Numbers]:
        """See the class."""
        started = time.perf_counter()
        data = Data.read(conversations, responses)
        if not len(data.rows):
            raise DataError("none of the conversations has an agent turn with tokens; there is nothing to fit Q on")
        if self.target == "expected" and responses is None:
            raise ConfigurationError("the target 'expected' needs responses in the next states; give responses")
        returns, known = data.turns.returns(self.discount), data.known
        numbers = _evaluate_unseen(core, data, returns)
        if known.any():
            numbers["return"] = float(returns[known].mean())
        core.calibrate("q", returns[known] if known.any() else returns)
        history = self._fit(core, data)
        weights = [step["weight"] for step in history]
        return None, numbers | {
            "loss": float(np.average([step["loss"] for step in history], weights=weights)),
            "gradient_norm": float(np.mean([step["gradient_norm"] for step in history])),
            "skipped": float(core.models.optimiser("q").skipped),
            "conversations": float(len(data.rows)),
            "cut": float(data.dialogues.cut.sum()),
            "turns": float(len(data.rows.items)),
            "seconds": time.perf_counter() - started,
        }

    def _fit(self, core: Core, data: "Data") -> list[Numbers]:
        """All passes, each with its own targets; returns the steps of the last pass."""
        generator = core.generator("fit_q")
        history: list[Numbers] = []
        for _ in range(self.epochs):
            wanted = core.tensor(self.targets(core, data))
            selections = minibatches(data.rows, generator, self.minibatch_conversations)
            history = [self._step(core, data.rows, selection, wanted) for selection in selections]
        return history

    def _step(self, core: Core, rows: Rows, selection: np.ndarray, targets: Tensor) -> Numbers:
        unit, count = core.models.value("q").unit, len(rows.items_of(selection))

        def loss(outputs: Outputs, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            total = ((outputs["values"] - targets[items]) / unit).square().sum() / count
            return total, {"loss": total}

        return core.update("q", rows, selection, loss, self.step) | {"weight": float(count)}

    def targets(self, core: Core, data: "Data") -> np.ndarray:
        """The targets of a pass, from the current models, float32 [agent turns]."""
        turns, any_cut = data.turns, bool(data.dialogues.cut.any())
        if self.target == "monte_carlo" and not any_cut:
            return turns.returns(self.discount)
        name = "q"
        if self.target_rate < 1.0:
            core.models.follow("q_target", "q", self.target_rate)
            name = "q_target"
        if self.target != "expected" or any_cut:
            q = turns.padded(core.evaluate(name, data.rows)["values"])
            bootstrap = turns.after_cut(q, data.dialogues.cut, self.discount) if any_cut else None
        else:
            q, bootstrap = turns.rewards, None
        if self.target == "expected" and data.responses is not None:
            ends = response_ends(data.dialogues, data.responses, core.branch_tokens)
            following = turns.padded(_next_values(data.dialogues, data.responses, core.evaluate(name, ends)["values"]))
            return turns.flat(expected_backup_targets(turns.rewards, following, turns.mask, self.discount, bootstrap))
        weight = {"sarsa": 0.0, "td_lambda": self.td_lambda}.get(self.target, 1.0)
        return turns.flat(td_lambda_targets(turns.rewards, q, turns.mask, self.discount, weight, bootstrap))


@dataclass(frozen=True)
class PredictQ(Operation[pa.Table]):
    """Q and Monte Carlo return of every agent turn.

    run: conversations. The table has the columns conversation_id, turn, q, return. Raises ConfigurationError before `QFit`.
    """

    discount: float = 0.95

    def run(self, core: Core, conversations: Tables) -> tuple[pa.Table, Numbers]:
        """See the class."""
        _require_q(core)
        dialogues = Dialogues.read(conversations)
        conversation = dialogues.turn_conversation[dialogues.agent_turns]
        table = pa.table(
            {
                "conversation_id": pc.take(dialogues.ids, pa.array(conversation)),
                "turn": dialogues.agent_turn_numbers(),
                "q": core.evaluate("q", turn_ends(dialogues))["values"],
                "return": Turns(dialogues).returns(self.discount),
            }
        )
        return table, {}


@dataclass(frozen=True)
class ScoreResponses(Operation[np.ndarray]):
    """Q of every response in its state, float32 [responses].

    run: conversations, responses. Raises ConfigurationError before `QFit`.
    """

    def run(self, core: Core, conversations: Tables, responses: Tables) -> tuple[np.ndarray, Numbers]:
        """See the class."""
        dialogues = Dialogues.read(conversations)
        return score(core, dialogues, Responses.read(responses, dialogues)), {}


class Turns:
    """The agent's turns as a padded matrix [conversations, most turns], and back to [agent turns]."""

    def __init__(self, dialogues: Dialogues) -> None:
        conversation = dialogues.turn_conversation[dialogues.agent_turns]
        counts = torch.from_numpy(np.bincount(conversation, minlength=len(dialogues)))
        width = int(counts.max()) if len(counts) else 0
        self.mask = torch.arange(width) < counts[:, None]
        self.rewards = self.padded(dialogues.rewards[dialogues.agent_turns])

    def padded(self, values: np.ndarray) -> Tensor:
        """[agent turns] to [conversations, most turns], zero if there is no turn."""
        matrix = torch.zeros(self.mask.shape)
        matrix[self.mask] = torch.from_numpy(np.array(values, dtype=np.float32))
        return matrix

    def flat(self, matrix: Tensor) -> np.ndarray:
        """[conversations, most turns] to float32 [agent turns]."""
        return matrix[self.mask].float().numpy()

    def after_cut(self, q: Tensor, cut: np.ndarray, discount: float) -> Tensor:
        """The value after the last turn of conversations that were cut, [conversations], 0 of the others: with it the last
        pair's target is Q itself. q: [conversations, most turns]; cut: bool [conversations]."""
        last = (self.mask.sum(dim=1) - 1).clamp_min(0)[:, None]
        value, reward = q.gather(1, last)[:, 0], self.rewards.gather(1, last)[:, 0]
        bootstrap = (value - reward) / discount if discount else torch.zeros_like(value)
        return torch.where(torch.from_numpy(cut), bootstrap, 0.0)

    def returns(self, discount: float) -> np.ndarray:
        """Monte Carlo returns, [agent turns]; of a conversation that was cut, the sum of its rewards so far."""
        return self.flat(monte_carlo_returns(self.rewards, self.mask, discount))


@dataclass(frozen=True)
class Data:
    """The data that Q is fitted on."""

    dialogues: Dialogues
    responses: Responses | None
    rows: Rows
    turns: Turns

    @property
    def known(self) -> np.ndarray:
        """The agent turns whose return is known because their conversation was not cut, bool [agent turns]."""
        return ~self.dialogues.cut[self.dialogues.turn_conversation[self.dialogues.agent_turns]]

    @classmethod
    def read(cls, conversations: Tables, responses: Tables | None = None) -> "Data":
        """The data from tables of conversations and responses."""
        dialogues = Dialogues.read(conversations)
        alternatives = None if responses is None else Responses.read(responses, dialogues)
        return cls(dialogues, alternatives, turn_ends(dialogues), Turns(dialogues))


def score(core: Core, dialogues: Dialogues, responses: Responses) -> np.ndarray:
    """Q of every response, float32 [responses]. Raises ConfigurationError if Q has not been fitted."""
    _require_q(core)
    return core.evaluate("q", response_ends(dialogues, responses, core.branch_tokens))["values"]


def quality(predictions: np.ndarray, returns: np.ndarray) -> Numbers:
    """`calibration`, and Pearson's `r`, which is left out if predictions or returns do not vary."""
    numbers = {"calibration": calibration_error(predictions, returns)}
    if predictions.std() > 0 and returns.std() > 0:
        numbers["r"] = float(np.corrcoef(predictions, returns)[0, 1])
    return numbers


def _require_q(core: Core) -> None:
    if "q" not in core.models:
        raise ConfigurationError("Q has not been fitted; run QFit first, or give scores")


def _next_values(dialogues: Dialogues, responses: Responses, scores: np.ndarray) -> np.ndarray:
    """Mean Q of the responses in the state after each agent turn, float32 [agent turns]; 0 after the last."""
    total = np.bincount(responses.turn, weights=scores, minlength=len(dialogues.agent))
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


def _evaluate_unseen(core: Core, data: Data, returns: np.ndarray) -> Numbers:
    """r and calibration error on conversations not fitted before, which are then remembered as fitted."""
    hashes = [_hash(identity) for identity in data.dialogues.ids.to_pylist()]
    unseen = np.array([number for number, name in enumerate(hashes) if name not in core.fitted], dtype=np.int64)
    core.fitted.update(hashes)
    if "q" not in core.models or not len(unseen):
        return {}
    chosen = core.generator("evaluate_q").permutation(unseen)[:EVALUATED]
    turns = np.isin(data.dialogues.turn_conversation[data.dialogues.agent_turns], chosen) & data.known
    if not turns.any():
        return {}
    selection = np.flatnonzero(np.isin(data.rows.unit, chosen))
    predictions = core.evaluate("q", data.rows, selection=selection)["values"][turns]
    return quality(predictions, returns[turns]) | {"evaluated_turns": float(turns.sum())}


def _hash(identity: str) -> int:
    """64 bits of a conversation's identity, signed, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big", signed=True)
