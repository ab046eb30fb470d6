"""The learner: fits Q, improves the policy, teaches by example, and hands out weights. One process, or one of several.

1. Methods take Arrow tables (one or several): conversations of `conversation.SCHEMA`, responses of
   `responses.RESPONSES`.
2. The same seed and the same calls give the same numbers. With several processes every process makes the same calls;
   each computes its share and all end with the same models (see `passes`, `collective`).
3. New algorithms are built on `evaluate`, `update` and `minibatches` with rows of `packing`, not on new training
   loops.
4. Models run in evaluation mode throughout: dropout would put noise into every ratio of probabilities.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers.core_model_loading import revert_weight_conversion

from mtrl_ray.errors import CheckpointError, ConfigurationError
from mtrl_ray.learner.compute import randomness
from mtrl_ray.learner.compute.collective import Collective
from mtrl_ray.learner.compute.core import Core, Name
from mtrl_ray.learner.compute.models import Models, Trained
from mtrl_ray.learner.compute.passes import LossFunction, Passes, Reading, Step
from mtrl_ray.learner.methods import conversations as whole
from mtrl_ray.learner.methods import credit, fitting, improvement, pair_models, prm, supervision, turn_values
from mtrl_ray.learner.rows.batch import Batch
from mtrl_ray.learner.rows.microbatches import balance
from mtrl_ray.learner.rows.packing import Rows
from mtrl_ray.learner.rows.tables import Dialogues, Responses, Tables
from mtrl_ray.learner.specification import (
    Advantages,
    ConversationImprovement,
    Improvement,
    PairFit,
    PairModel,
    PRMFit,
    QFit,
    Supervision,
    TurnAdvantages,
    TurnRewards,
)
from mtrl_ray.settings.tree import LearnerSettings
from mtrl_ray.weights.packed import PackedWeights, pack

STATE, FITTED = "learner.json", "fitted.npy"


class Learner:
    """One learner process. `policy`: a Hugging Face folder or a name of the hub; `dtype`: what samplers compute in.

    Raises CheckpointError where the policy cannot be opened, ConfigurationError for a device that is not there.
    """

    def __init__(
        self,
        settings: LearnerSettings,
        policy: str | Path,
        dtype: str = "float32",
        seed: int = 0,
        collective: Collective | None = None,
    ) -> None:
        self.collective = collective or Collective()
        torch.set_num_threads(settings.threads or max(1, len(os.sched_getaffinity(0)) // settings.processes))
        torch.manual_seed(seed)
        device = pick_device(settings)
        passes = Passes(device, dtype, settings.tokens_per_microbatch, self.collective)
        self.core = Core(Models(policy, device), passes, dtype, seed)
        self._fitted: set[int] = set()

    def fit_q(
        self, conversations: Tables, spec: QFit | None = None, responses: Tables | None = None
    ) -> dict[str, float]:
        """Fit Q on logged conversations. `responses`: in the next states, for the target `expected`.

        Returns `loss` (of the last pass, in units of the variance of the first targets), `return` (mean), `turns`,
        `conversations`, `gradient_norm`, `skipped`, `seconds`; and of conversations that Q was never fitted on,
        predicted before this fit: `r`, `calibration`, `evaluated_turns` (absent in the first fit of all).
        Raises DataError where there is nothing to fit, ConfigurationError where responses are missing.
        """
        dialogues = Dialogues.read(conversations)
        found = None if responses is None else Responses.read(responses, dialogues)
        return fitting.fit_q(self.core, dialogues, found, spec or QFit(), self._fitted)

    def predict_q(self, conversations: Tables, discount: float = 0.95) -> pa.Table:
        """Q and Monte Carlo return of every agent turn: columns conversation_id, turn, q, return."""
        return fitting.predict_q(self.core, Dialogues.read(conversations), discount)

    def score(self, conversations: Tables, responses: Tables) -> np.ndarray:
        """Q of every response in its state, float32 [responses]."""
        dialogues = Dialogues.read(conversations)
        return fitting.score(self.core, dialogues, Responses.read(responses, dialogues))

    def improve(
        self,
        conversations: Tables,
        responses: Tables,
        spec: Improvement | None = None,
        scores: np.ndarray | None = None,
    ) -> dict[str, float]:
        """Improve the policy on responses in logged states; `scores` float32 [responses], Q's where None.

        Returns means over the steps: `policy_loss`, `critic_loss`, `kl_reference` (k3, nats per token), `kl_step` (to
        the policy it started from), `clip_fraction`, `entropy` (nats), `gradient_norm`, `critic_gradient_norm`; sums
        `skipped`, `critic_skipped`, `policy_steps`, `trained_tokens`; `score`, `score_deviation`, `explained_variance`
        of the critic before the steps, `importance_weight`, `advantage_deviation`, `responses`, `seconds`,
        `tokens_per_second`.
        """
        dialogues = Dialogues.read(conversations)
        found = Responses.read(responses, dialogues)
        if scores is None:
            scores = fitting.score(self.core, dialogues, found)
        values = np.asarray(scores, dtype=np.float32)
        return improvement.improve(self.core, dialogues, found, values, spec or Improvement())

    def fit_prm(self, conversations: Tables, spec: PRMFit | None = None) -> dict[str, float]:
        """Update the implicit process reward model on the conversations' scores.

        Returns means over the steps: `loss` (nats per conversation), `gradient_norm`; `skipped`, `seconds`; and of its
        predictions before the update: `pair_accuracy`, `sign_accuracy`, `r`, `sum_deviation`.
        """
        return prm.fit_prm(self.core, Batch.read(conversations), spec or PRMFit())

    def implicit_rewards(self, conversations: Tables, beta: float) -> np.ndarray:
        """`β log π_φ/π_ref` of every agent token, float32 [agent tokens]. Raises ConfigurationError before `fit_prm`."""
        prm.require_prm(self.core)
        return prm.implicit_rewards(self.core, Batch.read(conversations), beta)

    def score_turns(self, conversations: Tables, beta: float) -> pa.Table:
        """The implicit reward of every agent turn: columns conversation_id, turn (index into the conversation's turns),
        reward (the sum), token_rewards (list). Raises ConfigurationError before `fit_prm`.
        """
        prm.require_prm(self.core)
        return prm.score_turns(self.core, Batch.read(conversations), beta)

    def turn_rewards(
        self, conversations: Tables, spec: TurnRewards, implicit: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Token rewards, float32 [agent tokens], and numbers; `implicit` as `implicit_rewards` gives it.

        Numbers: `outcome` (mean of score less the price of words), `words` (of the agent, per conversation);
        `largest_weight` of schemes that split the outcome; `agreement` of the best turn with the users' own record, and
        `agreement_chance`, where they keep one; `value_loss`, `explained_variance` of the scheme `value`.
        """
        return credit.turn_rewards(self.core, Batch.read(conversations), spec, implicit)

    def advantages(
        self, conversations: Tables, rewards: np.ndarray, spec: Advantages | None = None
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Token advantages, float32 [agent tokens], out of token rewards [agent tokens], and numbers.

        Numbers: `deviation` (before whitening); of `ppo`, `critic_loss` and `explained_variance` (before its fit).
        """
        return credit.advantages(self.core, Batch.read(conversations), rewards, spec or Advantages())

    def turn_advantages(
        self, conversations: Tables, terminal: np.ndarray | None = None, spec: TurnAdvantages | None = None
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Token advantages, float32 [agent tokens], out of terminal rewards, float32 [conversations], the scores where None.

        Numbers: `terminal` and `terminal_deviation`; `deviation` (of the advantages before whitening); `kl_conversation`
        and `kl_turn` (to the reference, nats); `value_loss` and `value_explained_variance` (before the fit) of turn
        values, `critic_loss` and `critic_explained_variance` of token values.
        """
        return turn_values.turn_advantages(self.core, Batch.read(conversations), terminal, spec or TurnAdvantages())

    def fit_pairs(
        self, pairs: Tables, preferred: np.ndarray, model: PairModel, spec: PairFit | None = None
    ) -> dict[str, float]:
        """Fit the preference or the reward model on pairs, the two members next to each other.

        preferred: float32 [conversations], the probability of each to be preferred to its partner.
        Returns means over the steps: `loss` (nats per pair), `gradient_norm`; `skipped`, `pairs`, `seconds`; and of its
        predictions before the fit: `accuracy`, `calibration`, `cross_entropy`, and the preferences' own `entropy`.
        """
        return pair_models.fit_pairs(self.core, Dialogues.read(pairs), preferred, model, spec or PairFit())

    def pair_quality(self, pairs: Tables, preferred: np.ndarray, model: PairModel) -> dict[str, float]:
        """How a model that is there predicts pairs that it is not fitted on: `pairs`, `accuracy`, `calibration`,
        `cross_entropy`, and the preferences' own `entropy`; preferred as in `fit_pairs`."""
        return pair_models.pair_quality(self.core, Dialogues.read(pairs), preferred, model)

    def preferred(self, pairs: Tables, model: PairModel) -> np.ndarray:
        """Each conversation's probability to be preferred to its partner, as a model sees it, float32 [conversations]."""
        return pair_models.preferred(self.core, Dialogues.read(pairs), model)

    def rewards(self, conversations: Tables) -> np.ndarray:
        """The reward model's score of each conversation, in log-odds, float32 [conversations]."""
        return pair_models.rewards(self.core, Dialogues.read(conversations))

    def response_rewards(self, conversations: Tables, responses: Tables) -> np.ndarray:
        """The reward model's score of each response at the end of its history, in log-odds, float32 [responses]."""
        dialogues = Dialogues.read(conversations)
        return pair_models.response_rewards(self.core, dialogues, Responses.read(responses, dialogues))

    def adopt(self, model: PairModel, folder: str | Path) -> None:
        """Take a preference or reward model that was fitted before, where there is none yet. Raises CheckpointError."""
        self.core.models.adopt(model, folder)

    def improve_conversations(
        self, conversations: Tables, advantages: np.ndarray, spec: ConversationImprovement | None = None
    ) -> dict[str, float]:
        """Improve the policy on all agent tokens of whole conversations; `advantages` float32 [agent tokens].

        Returns what `improve` does of the policy, and `conversations`, `groups`.
        """
        batch = Batch.read(conversations)
        return whole.improve_conversations(self.core, batch, advantages, spec or ConversationImprovement())

    def supervise(self, conversations: Tables, spec: Supervision | None = None) -> dict[str, float]:
        """Train the policy on the agent's tokens.

        Returns `first_loss`, `loss` (mean of the last tenth), `steps`, `skipped`, `trained_tokens`, `seconds`,
        `tokens_per_second`.
        """
        return supervision.supervise(self.core, Dialogues.read(conversations), spec or Supervision())

    def evaluate(self, model: Name, rows: Rows, reading: Reading | None = None) -> dict[str, np.ndarray]:
        """A model read at all items of the rows. See `passes`."""
        return self.core.evaluate(model, rows, reading)

    def update(
        self,
        model: Trained,
        rows: Rows,
        selection: np.ndarray,
        loss: LossFunction,
        step: Step,
        reading: Reading | None = None,
    ) -> dict[str, float]:
        """One optimiser step on some rows. See `passes`."""
        return self.core.update(model, rows, selection, loss, step, reading)

    def minibatches(self, rows: Rows, parts: int, stream: str) -> Iterator[np.ndarray]:
        """One pass over the rows in `parts` minibatches of about equal token count; `stream` names its randomness."""
        yield from balance(rows, self.core.generator(stream).permutation(np.unique(rows.unit)), parts)

    def anchor(self) -> None:
        """Make the policy as it is now the reference `current` of KL penalties."""
        self.core.anchor()

    def weights(self, version: int) -> PackedWeights:
        """The policy's weights under checkpoint names, in the samplers' dtype, stamped `version`."""
        self.core.published_version, self.core.published_at = version, self.core.policy_steps
        network = self.core.models.network
        tied = getattr(network, "all_tied_weights_keys", None) or {}
        state = {name: tensor for name, tensor in network.state_dict().items() if name not in tied}
        return pack(revert_weight_conversion(network, state), version, getattr(torch, self.core.dtype))

    def packed(self, version: int) -> tuple[PackedWeights, int]:
        """`weights`, and their size in bytes."""
        weights = self.weights(version)
        return weights, weights.nbytes

    def save(self, folder: str | Path) -> None:
        """Write models, optimisers and random states into `folder`; only the first of several processes writes."""
        if self.collective.rank:
            return
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.core.models.save(folder)
        np.save(folder / FITTED, np.array(sorted(self._fitted), dtype=np.int64))
        randomness.keep(folder)
        (folder / STATE).write_text(json.dumps(self.core.state(), indent=1, sort_keys=True))

    def load(self, folder: str | Path) -> None:
        """Continue from what `save` wrote. Raises CheckpointError where it cannot be read."""
        folder = Path(folder)
        try:
            state = json.loads((folder / STATE).read_text())
            fitted = np.load(folder / FITTED, allow_pickle=False)
            self.core.models.load(folder)
            self.core.restore(state)
            randomness.restore(folder)
        except CheckpointError:
            raise
        except Exception as error:  # json, numpy and torch share no base class
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"the learner's state in {str(folder)!r} cannot be read: {reason}") from error
        self._fitted = set(fitted.tolist())


def pick_device(settings: LearnerSettings) -> torch.device:
    """The device that the settings ask for. Raises ConfigurationError where it is not there."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("learner.device is 'cuda', but torch sees no GPU here; use 'auto' or 'cpu'")
    wanted = settings.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if wanted else "cpu")
