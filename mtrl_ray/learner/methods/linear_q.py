"""A response-level Q that is linear in the policy's own features: fitted in closed form, again in every iteration.

1. Targets are Monte Carlo returns; a conversation that the context window cut has no known return and is left out.
2. Ridge regression on `features` of the logged responses (`statistics.ridge`). V is the same on the state's features alone.
   Each is judged by, and its penalty chosen by, predictions of the newest conversations by regressions that had not seen them:
   `FOLDS` parts of these conversations, all older ones in every fit.
3. Advantages of the newest logged responses are λ-returns against that V, so none contains its own outcome twice.
4. Nothing is trained and nothing is kept: the features are those of the policy as it is, so Q follows it.

One part of Q is told apart, because no responses have to be sampled to follow it: by how much likelier responses are better
(`sharpening`). The expectation of a response's log-probability is the policy's entropy, whose gradient is exact.

Why linear: from as few conversations a network learns little by gradient descent; the policy's last hidden states already tell
what was said, and its log-probabilities which responses people give. docs/iterative_ppo.md has the figures.
"""

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mtrl_ray.errors import DataError
from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.methods.features import Features
from mtrl_ray.learner.methods.q import Turns, quality
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.tables import Dialogues, Responses, Tables
from mtrl_ray.objectives.advantages import turn_gae
from mtrl_ray.statistics import ridge

FOLDS = 4
"""Parts of the newest conversations that are predicted by what was not fitted on them."""
LIKELINESS_RIDGE = 30.0
"""Nats², added to the sum of squared likeliness: as much as 60 responses with a deviation of .7 have."""
SURE = 2.0
"""Standard errors that the correlation of Q's advantages with what V leaves has to be above zero for full `confidence`."""


@dataclass(frozen=True)
class Scores:
    """What a fit of Q says: `responses`, float32 [responses], Q of the sampled ones; `logged`, float32 [agent turns of the
    newest conversations], advantages of what was said, NaN if unknown; `confidence`, in [0, 1], how sure it is that Q ranks
    responses within a state at all; `q`, the regression on `Features.full`; `sharpening`, by how many
    deviations of the advantage a response is better per nat that it is likelier, at least 0."""

    responses: np.ndarray
    logged: np.ndarray
    confidence: float
    q: ridge.Ridge
    sharpening: float = 0.0


@dataclass(frozen=True)
class LinearQ(Operation[Scores]):
    """Fit Q, and score responses with it.

    run: the newest conversations; older ones, or None; responses in states of the newest.
    Numbers: `r`, `calibration` (of predictions of the newest returns by fits without them), `value_r` (the same of V),
    `within_r` (correlation of Q - V with what V leaves of the return, by such fits), `confidence`, `sharpening`, `penalty` (in
    units of the number of features), `return` (mean of the newest), `turns`, `conversations`, `cut`, `seconds`.
    Raises DataError if no conversation has a known return.
    """

    doing: ClassVar[str] = "fitting Q"

    discount: float
    """γ per agent turn."""
    td_lambda: float
    """λ of the logged responses' returns, per agent turn: 1 is the return itself."""

    def run(
        self, core: Core, newest: Tables, older: Tables | None, responses: Tables | None = None
    ) -> tuple[Scores, Numbers]:
        """See the class."""
        started = time.perf_counter()
        now = _Logged.read(core, newest, self.discount)
        before = None if older is None else _Logged.read(core, older, self.discount)
        if not now.known.any():
            raise DataError(
                "none of the newest conversations has an agent turn with tokens and an end; there is nothing to fit Q on"
            )
        folds = _folds(core, now)
        q, predicted = _fitted(now, before, folds, full=True)
        v, values = _fitted(now, before, folds, full=False)
        values = np.where(now.known, values, v(now.features.state))
        within, confidence = _skill(predicted, values, now)
        scored = np.zeros(0, dtype=np.float32)
        if responses is not None:
            single = Responses.read(responses, now.dialogues)
            some, kind = single.distinct()
            scored = q(Features.of_responses(core, now.dialogues, single.take(some)).full)[kind]
        logged = now.advantages(values, self.discount, self.td_lambda)
        parts = [(now, logged)]
        if before is not None:
            parts.append((before, before.advantages(v(before.features.state), self.discount, self.td_lambda)))
        sharpening = _sharpening(parts)
        known = now.known
        numbers = quality(predicted[known], now.returns[known]) | {
            "value_r": quality(values[known], now.returns[known]).get("r", 0.0),
            "within_r": within,
            "confidence": confidence,
            "sharpening": sharpening,
            "penalty": q.strength,
            "return": float(now.returns[known].mean()),
            "turns": float(len(known) + (0 if before is None else len(before.known))),
            "conversations": float(len(now.dialogues) + (0 if before is None else len(before.dialogues))),
            "cut": float(now.dialogues.cut.sum()),
            "seconds": time.perf_counter() - started,
        }
        return Scores(scored, logged, confidence, q, sharpening), numbers


@dataclass(frozen=True)
class ScoreLinearly(Operation[np.ndarray]):
    """Q of responses, float32 [responses], while the policy is the one that Q was fitted with.

    run: conversations, responses, what `LinearQ` returned.
    """

    def run(self, core: Core, conversations: Tables, responses: Tables, scores: Scores) -> tuple[np.ndarray, Numbers]:
        """See the class."""
        dialogues = Dialogues.read(conversations)
        return scores.q(Features.of_responses(core, dialogues, Responses.read(responses, dialogues)).full), {}


@dataclass(frozen=True)
class _Logged:
    """Conversations; `returns` float32 and `known` bool, both [agent turns]."""

    dialogues: Dialogues
    turns: Turns
    features: Features
    returns: np.ndarray
    known: np.ndarray

    @classmethod
    def read(cls, core: Core, tables: Tables, discount: float) -> "_Logged":
        dialogues = Dialogues.read(tables)
        turns = Turns(dialogues)
        known = ~dialogues.cut[dialogues.turn_conversation[dialogues.agent_turns]]
        return cls(dialogues, turns, Features.of_turns(core, dialogues), turns.returns(discount), known)

    def advantages(self, values: np.ndarray, discount: float, td_lambda: float) -> np.ndarray:
        """λ-return less V, float32 [agent turns]; NaN in conversations that were cut."""
        found, _ = turn_gae(self.turns.rewards, self.turns.padded(values), self.turns.mask, discount, td_lambda)
        return np.where(self.known, self.turns.flat(found), np.nan).astype(np.float32)


def _folds(core: Core, now: _Logged) -> np.ndarray:
    """The part of each known agent turn, int64; turns of one conversation are in one."""
    order = core.generator("folds").permutation(len(now.dialogues)) % FOLDS
    part: np.ndarray = order[now.dialogues.turn_conversation[now.dialogues.agent_turns]]
    return part[now.known]


def _fitted(now: _Logged, before: _Logged | None, folds: np.ndarray, full: bool) -> tuple[ridge.Ridge, np.ndarray]:
    """The regression, and its predictions of the newest agent turns from the other folds; NaN if the return is not known."""
    data = [now] if before is None else [now, before]
    features = np.concatenate([(one.features.full if full else one.features.state)[one.known] for one in data])
    targets = np.concatenate([one.returns[one.known] for one in data])
    parts = np.concatenate([folds, np.full(len(targets) - len(folds), -1)])
    found, held = ridge.fit(features, targets, parts)
    predicted = np.full(len(now.known), np.nan, dtype=np.float32)
    predicted[now.known] = held[: len(folds)]
    return found, predicted


def _skill(q: np.ndarray, v: np.ndarray, now: _Logged) -> tuple[float, float]:
    """Correlation of Q - V with what V leaves of the return, and how sure it is that it is above zero, in [0, 1].

    Its standard error counts conversations, not turns: these share their outcome.
    """
    known = now.known
    advantages, left = (q - v)[known], (now.returns - v)[known]
    count = len(np.unique(now.dialogues.turn_conversation[now.dialogues.agent_turns][known]))
    if count < 3 or advantages.std() == 0 or left.std() == 0:
        return 0.0, 0.0
    r = float(np.corrcoef(advantages, left)[0, 1])
    return r, float(np.clip(r * np.sqrt(count) / SURE, 0.0, 1.0))


def _sharpening(parts: list[tuple[_Logged, np.ndarray]]) -> float:
    """Deviations of the advantage per nat of `Features.likeliness`, as far as it is sure to be above zero (as in `_skill`).

    Regression of what was said, newest and older, with advantages float32 [agent turns]. `LIKELINESS_RIDGE` shrinks it where
    the policy's answers hardly differ any more.
    """
    likeliness = np.concatenate([_centred(one.features.likeliness[one.known]) for one, _ in parts])
    advantages = np.concatenate([_centred(found[one.known]) for one, found in parts])
    count = sum(
        len(np.unique(one.dialogues.turn_conversation[one.dialogues.agent_turns][one.known])) for one, _ in parts
    )
    along, deviation = float(likeliness @ advantages), float(advantages.std())
    if count < 3 or along <= 0 or deviation == 0:
        return 0.0
    square = float(likeliness @ likeliness)
    r = along / np.sqrt(square * float(advantages @ advantages))
    sure = min(r * np.sqrt(count) / SURE, 1.0)
    return float(sure * along / (square + LIKELINESS_RIDGE) / deviation)


def _centred(values: np.ndarray) -> np.ndarray:
    centred: np.ndarray = values - values.mean() if len(values) else values
    return centred
