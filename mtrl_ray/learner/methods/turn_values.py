"""Advantages out of one number per conversation, with values of turns, of tokens, or of both (2405.14655 §4.1).

The terminal reward (a preference, a reward model's score, the task's score) comes with the last turn, and the KL to the
reference is charged on arrival (`algorithms.regularised_rewards`). No discount.

1. `turn`, the paper's: one value per state before an agent turn, GAE over turns, all tokens of a turn share its
   advantage.
2. `token`: a critic of all agent tokens, GAE over them.
3. `hybrid`: values and GAE of turns say what a turn was worth, its λ-return; within the turn a token critic and GAE over
   its tokens say which of them earned it. Each response is a problem of one turn, as in Iterative PPO.

Values are predicted before they are fitted: an advantage never contains its own outcome twice.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtrl_ray.errors import DataError
from mtrl_ray.learner.compute.core import Core
from mtrl_ray.learner.compute.models import Valued
from mtrl_ray.learner.compute.passes import Reading
from mtrl_ray.learner.methods.updates import explained_variance
from mtrl_ray.learner.methods.values import regress
from mtrl_ray.learner.rows.batch import Batch, Layout
from mtrl_ray.learner.rows.packing import Rows
from mtrl_ray.learner.specification import TurnAdvantages
from mtrl_ray.objectives.advantages import broadcast_turns, gae, turn_gae, whiten
from mtrl_ray.objectives.regularised_rewards import later_in_turn, on_arrival
from mtrl_ray.objectives.turn_rewards import turn_sums

Numbers = dict[str, float]


@dataclass(frozen=True)
class Account:
    """What a batch earned and paid. `terminal`: [conversations]; `tokens`: sampled KL, [conversations, tokens];
    `turns`: its sums, [conversations, turns]."""

    layout: Layout
    terminal: Tensor
    tokens: Tensor
    turns: Tensor


def turn_advantages(
    core: Core, batch: Batch, terminal: np.ndarray | None, spec: TurnAdvantages
) -> tuple[np.ndarray, Numbers]:
    """Token advantages, float32 [agent tokens], and numbers; terminal: float32 [conversations], None: the scores.

    See `Learner.turn_advantages`.
    """
    earned = batch.scores if terminal is None else terminal
    if len(earned) != len(batch) or not np.isfinite(earned).all():
        raise DataError(
            f"{len(batch)} conversations need as many finite terminal rewards; {len(earned)} were given, "
            f"{int(np.isfinite(earned).sum())} of them finite"
        )
    account = _account(core, batch, earned, spec)
    estimate = {"turn": _turn, "token": _token, "hybrid": _hybrid}[spec.value]
    found, deviation, numbers = estimate(core, batch, account, spec)
    conversations = account.turns.sum(dim=1)
    numbers |= {
        "deviation": deviation,
        "terminal": float(np.mean(earned)),
        "terminal_deviation": float(np.std(earned)),
        "kl_conversation": float(conversations.mean()),
        "kl_turn": float(conversations.sum() / account.layout.present.sum()),
    }
    return found.float().cpu().numpy(), numbers


def _account(core: Core, batch: Batch, earned: np.ndarray, spec: TurnAdvantages) -> Account:
    layout = Layout(batch.dialogues, core.passes.device)
    reference = core.evaluate("reference", batch.token_rows, Reading(spec.temperature))["logprobs"]
    tokens = layout.tokens(core.tensor(batch.logprobs - reference))
    turns = turn_sums(tokens, layout.turn_index, layout.mask, layout.turns)
    return Account(layout, core.tensor(np.asarray(earned, dtype=np.float32)), tokens, turns)


def _turn(core: Core, batch: Batch, account: Account, spec: TurnAdvantages) -> tuple[Tensor, float, Numbers]:
    layout = account.layout
    found, _, numbers = _over_turns(core, batch, account, spec)
    deviation = float(found[layout.present].std(correction=0))
    if spec.whiten:
        found = whiten(found, layout.present)
    later = later_in_turn(account.tokens, layout.turn_index, layout.mask, layout.turns)
    tokens = broadcast_turns(found, layout.turn_index, layout.mask) - spec.alpha * later
    return tokens[layout.mask], deviation, numbers


def _token(core: Core, batch: Batch, account: Account, spec: TurnAdvantages) -> tuple[Tensor, float, Numbers]:
    layout = account.layout
    rewards = on_arrival(account.terminal, account.tokens, layout.mask, spec.alpha)
    values = layout.tokens(_values(core, "critic", batch.token_rows, account.terminal))
    found, returns = gae(rewards, values, layout.mask, 1.0, spec.token_lambda)
    numbers = _fit(core, "critic", batch.token_rows, values[layout.mask], returns[layout.mask], spec)
    return (*_whitened(found[layout.mask], spec), numbers)


def _hybrid(core: Core, batch: Batch, account: Account, spec: TurnAdvantages) -> tuple[Tensor, float, Numbers]:
    layout = account.layout
    _, turn_returns, numbers = _over_turns(core, batch, account, spec)
    lengths = torch.from_numpy(batch.turn_lengths).to(layout.mask.device)
    within = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]  # [agent turns, longest]
    divergence, values = torch.zeros_like(within, dtype=torch.float32), torch.zeros_like(within, dtype=torch.float32)
    divergence[within] = account.tokens[layout.mask]
    worth = turn_returns[layout.present]
    values[within] = _values(core, "critic", batch.token_rows, worth)
    rewards = on_arrival(worth, divergence, within, spec.alpha)
    found, returns = gae(rewards, values, within, 1.0, spec.token_lambda)
    numbers |= _fit(core, "critic", batch.token_rows, values[within], returns[within], spec)
    return (*_whitened(found[within], spec), numbers)


def _over_turns(core: Core, batch: Batch, account: Account, spec: TurnAdvantages) -> tuple[Tensor, Tensor, Numbers]:
    """(advantages, λ-returns), [conversations, turns]; the value model is fitted on the returns afterwards."""
    layout = account.layout
    rewards = on_arrival(account.terminal, account.turns, layout.present, spec.alpha)
    values = layout.of_turns(_values(core, "value", batch.state_rows, account.terminal))
    found, returns = turn_gae(rewards, values, layout.present, 1.0, spec.gae_lambda)
    numbers = _fit(core, "value", batch.state_rows, values[layout.present], returns[layout.present], spec)
    return found, returns, numbers


def _values(core: Core, name: Valued, rows: Rows, calibration: Tensor) -> Tensor:
    """A value model's predictions, [items]; `calibration` sets its scale where nothing has yet."""
    core.calibrate(name, calibration.cpu().numpy())
    return core.tensor(core.evaluate(name, rows)["values"])


def _fit(core: Core, name: Valued, rows: Rows, values: Tensor, targets: Tensor, spec: TurnAdvantages) -> Numbers:
    fitted = regress(core, name, rows, targets.float().cpu().numpy(), spec.fit)
    numbers = {f"{name}_{number}": value for number, value in fitted.items()}
    return numbers | {f"{name}_explained_variance": explained_variance(values, targets)}


def _whitened(found: Tensor, spec: TurnAdvantages) -> tuple[Tensor, float]:
    """Token advantages, and their deviation before whitening."""
    deviation = float(found.std(correction=0))
    if spec.whiten:
        found = whiten(found[None], torch.ones_like(found[None], dtype=torch.bool))[0]
    return found, deviation
