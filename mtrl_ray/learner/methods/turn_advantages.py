"""Advantages from one number per conversation, with values of turns, of tokens, or of both (2405.14655 §4.1).

The terminal reward (a preference, a reward model's score, the task's score) is the reward of the last turn, and the KL to the
reference is charged on arrival (`objectives.regularised_rewards`). No discount.

- `turn`, the paper's: one value per state before an agent turn and GAE over turns. All tokens of a turn share its advantage.
- `token`: a critic of all agent tokens, GAE over them.
- `hybrid`: values and GAE of turns give each turn its λ-return; within the turn a token critic and GAE distribute it over the
  tokens. Each response is a single-turn problem, as in Iterative PPO.

Values are predicted before they are fitted: an advantage never contains its own outcome twice.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtrl_ray.errors import DataError
from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.compute.references import REFERENCE
from mtrl_ray.learner.methods.values import explained_variance, regress
from mtrl_ray.learner.operation import Numbers, Operation
from mtrl_ray.learner.rows.batch import Batch, Layout
from mtrl_ray.learner.rows.packing import Rows
from mtrl_ray.learner.rows.tables import Tables
from mtrl_ray.learner.sections import Fit
from mtrl_ray.models.policy import ForwardOptions
from mtrl_ray.objectives.advantages import broadcast_turns, gae, signal, turn_gae, whiten
from mtrl_ray.objectives.regularised_rewards import later_in_turn, on_arrival
from mtrl_ray.objectives.turn_rewards import turn_sums
from mtrl_ray.settings.section import Section


@dataclass(frozen=True)
class Account:
    """Rewards and KL costs of a batch. `terminal`: [conversations]; `tokens`: sampled KL, [conversations, tokens];
    `turns`: its sums, [conversations, turns]; `alpha`: the weight of the KL."""

    batch: Batch
    layout: Layout
    terminal: Tensor
    tokens: Tensor
    turns: Tensor
    alpha: float


class TurnAdvantages(Section, Operation[np.ndarray]):
    """Token advantages, float32 [agent tokens], from one number per conversation, with the KL to the reference inside.

    run: conversations; terminal rewards, float32 [conversations], the scores if None; alpha, the weight of the KL in units of
    the terminal reward per nat.
    Numbers: `alpha`; `terminal` and `terminal_deviation`; `deviation` (of the advantages before whitening); if whitened,
    `signal`, by which they are multiplied (see `objectives.advantages.signal`); `kl_conversation` and
    `kl_turn` (to the reference, nats); `value_loss` and `value_explained_variance` (before the fit) of turn values,
    `critic_loss` and `critic_explained_variance` of token values.
    """

    doing: ClassVar[str] = "fitting values"

    value: Literal["turn", "token", "hybrid"] = "turn"
    """`turn`: one value per state before an agent turn (2405.14655 §4.1); `token`: a token critic; `hybrid`: the
    former across turns, the latter within."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Per turn."""
    token_lambda: float = Field(0.99, ge=0, le=1)
    """Per token, of `token` and `hybrid`."""
    whiten: bool = True
    """Bring advantages to mean 0 and variance 1: of turns for `turn`, else of tokens."""
    fit: Fit = Fit()
    """Of every value model that takes part."""

    def run(
        self, core: Core, conversations: Tables, terminal: np.ndarray | None = None, alpha: float = 0.0
    ) -> tuple[np.ndarray, Numbers]:
        """See the class."""
        batch = Batch.read(conversations)
        if terminal is None:
            batch.require_scores()
        earned = batch.scores if terminal is None else terminal
        if len(earned) != len(batch) or not np.isfinite(earned).all():
            raise DataError(
                f"{len(batch)} conversations need as many finite terminal rewards; {len(earned)} were given, "
                f"{int(np.isfinite(earned).sum())} of them finite"
            )
        account = _account(core, batch, np.asarray(earned, dtype=np.float32), alpha)
        estimate = {"turn": self._turn, "token": self._token, "hybrid": self._hybrid}[self.value]
        advantages, deviation, numbers = estimate(core, account)
        conversation_kl = account.turns.sum(dim=1)
        numbers |= {
            "alpha": alpha,
            "deviation": deviation,
            "terminal": float(np.mean(earned)),
            "terminal_deviation": float(np.std(earned)),
            "kl_conversation": float(conversation_kl.mean()),
            "kl_turn": float(conversation_kl.sum() / account.layout.present.sum()),
        }
        return advantages.float().cpu().numpy(), numbers

    def _turn(self, core: Core, account: Account) -> tuple[Tensor, float, Numbers]:
        layout = account.layout
        advantages, _, numbers = self._over_turns(core, account)
        deviation = float(advantages[layout.present].std(correction=0))
        if self.whiten:
            numbers["signal"] = signal(advantages, layout.present)
            advantages = whiten(advantages, layout.present) * numbers["signal"]
        later = later_in_turn(account.tokens, layout.turn_index, layout.mask, layout.turns)
        tokens = broadcast_turns(advantages, layout.turn_index, layout.mask) - account.alpha * later
        return tokens[layout.mask], deviation, numbers

    def _token(self, core: Core, account: Account) -> tuple[Tensor, float, Numbers]:
        layout, rows = account.layout, account.batch.token_rows
        rewards = on_arrival(account.terminal, account.tokens, layout.mask, account.alpha)
        values = layout.tokens(_values(core, "critic", rows, account.terminal))
        advantages, returns = gae(rewards, values, layout.mask, 1.0, self.token_lambda)
        numbers = self._fit(core, "critic", rows, values[layout.mask], returns[layout.mask])
        return self._whitened(advantages[layout.mask], numbers)

    def _hybrid(self, core: Core, account: Account) -> tuple[Tensor, float, Numbers]:
        layout, rows = account.layout, account.batch.token_rows
        _, turn_returns, numbers = self._over_turns(core, account)
        lengths = torch.from_numpy(account.batch.turn_lengths).to(layout.mask.device)
        within = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]  # [agent turns, longest]
        divergence, values = (
            torch.zeros_like(within, dtype=torch.float32),
            torch.zeros_like(within, dtype=torch.float32),
        )
        divergence[within] = account.tokens[layout.mask]
        worth = turn_returns[layout.present]
        values[within] = _values(core, "critic", rows, worth)
        rewards = on_arrival(worth, divergence, within, account.alpha)
        advantages, returns = gae(rewards, values, within, 1.0, self.token_lambda)
        numbers |= self._fit(core, "critic", rows, values[within], returns[within])
        return self._whitened(advantages[within], numbers)

    def _over_turns(self, core: Core, account: Account) -> tuple[Tensor, Tensor, Numbers]:
        """(advantages, λ-returns), [conversations, turns]; the value model is fitted on the returns afterwards."""
        layout, rows = account.layout, account.batch.state_rows
        rewards = on_arrival(account.terminal, account.turns, layout.present, account.alpha)
        values = layout.of_turns(_values(core, "value", rows, account.terminal))
        advantages, returns = turn_gae(rewards, values, layout.present, 1.0, self.gae_lambda)
        numbers = self._fit(core, "value", rows, values[layout.present], returns[layout.present])
        return advantages, returns, numbers

    def _fit(self, core: Core, name: str, rows: Rows, values: Tensor, targets: Tensor) -> Numbers:
        fitted = regress(core, name, rows, targets.float().cpu().numpy(), self.fit)
        numbers = {f"{name}_{number}": value for number, value in fitted.items()}
        return numbers | {f"{name}_explained_variance": explained_variance(values, targets)}

    def _whitened(self, advantages: Tensor, numbers: Numbers) -> tuple[Tensor, float, Numbers]:
        """Token advantages, their deviation before whitening, and the numbers."""
        deviation, everything = float(advantages.std(correction=0)), torch.ones_like(advantages[None], dtype=torch.bool)
        if self.whiten:
            numbers["signal"] = signal(advantages[None], everything)
            advantages = whiten(advantages[None], everything)[0] * numbers["signal"]
        return advantages, deviation, numbers


def _account(core: Core, batch: Batch, earned: np.ndarray, alpha: float) -> Account:
    layout = Layout(batch.dialogues, core.device)
    reference = core.evaluate(REFERENCE, batch.token_rows, ForwardOptions(core.temperature))["logprobs"]
    tokens = layout.tokens(core.tensor(batch.logprobs - reference))
    turns = turn_sums(tokens, layout.turn_index, layout.mask, layout.turns)
    return Account(batch, layout, core.tensor(earned), tokens, turns, alpha)


def _values(core: Core, name: str, rows: Rows, calibration: Tensor) -> Tensor:
    """A value model's predictions, [items]; its scale follows `calibration`."""
    core.calibrate(name, calibration.cpu().numpy())
    return core.tensor(core.evaluate(name, rows)["values"])
