"""A warm start ends by what the model can do."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from mtrl_ray.dialogue.conversation import Conversation, from_table, to_table
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods import warm_start
from mtrl_ray.learner.methods.warm_start import PAIRS, Contrasts, WarmStart, right_answers, stopped_falling
from mtrl_ray.learner.rows.packing import turn_tokens
from mtrl_ray.learner.rows.tables import Dialogues
from tests.learner.examples import agent_turn
from tests.learner.test_sft import echoes


def pairs(count: int) -> pa.Table:
    """The first agent turn of echoes as it should be, and with another token than the one that was heard."""
    held: list[Conversation] = []
    for talk in from_table(echoes(count)):
        heard = talk.turns[0].tokens[-1]
        both = (heard, 5 + (heard - 4) % 15)
        held += [replace(talk, turns=[talk.turns[0], agent_turn([said, 1])]) for said in both]
    return to_table(held)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STRETCH": 10, "RISE": 5, "DECAY": 6, "LEAST": 10}.items():
        monkeypatch.setattr(warm_start, name, value)


@pytest.mark.usefixtures("short")
def test_it_ends_when_the_model_takes_up_what_it_heard(learner: Learner) -> None:
    assert right_answers(learner.core, pairs(32)) < 0.7
    metrics = WarmStart(steps=600, until=0.9).run(learner.core, echoes(64), pairs(32))[1]
    assert metrics["passed"] == 1.0 and metrics["probe"] > 0.9
    assert metrics["steps"] % 10 == 6 and metrics["steps"] < 600
    assert right_answers(learner.core, pairs(32)) == pytest.approx(metrics["probe"])


def mumbles(count: int) -> pa.Table:
    """Echoes in which the agent says one of two tokens, whatever it heard: nothing can be learned of listening."""
    talks = []
    for number, talk in enumerate(from_table(echoes(count))):
        turns = [agent_turn([5 + number % 2, 1]) if turn.tokens[-1] == 1 else turn for turn in talk.turns]
        talks.append(replace(talk, turns=turns))
    return to_table(talks)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("taught", [None, pairs(96)], ids=["conversations alone", "pairs beside them"])
def test_pairs_teach_what_the_conversations_do_not(learner: Learner, taught: pa.Table | None) -> None:
    """Here nobody in the conversations gives the right answer of a pair."""
    metrics = WarmStart(steps=200, until=0.9).run(learner.core, mumbles(64), pairs(32), taught)[1]
    if taught is None:
        assert metrics["passed"] == 0.0 and metrics["steps"] == 200 and metrics["pair_steps"] == 0
    else:
        assert metrics["passed"] == 1.0 and metrics["steps"] < 200 and metrics["pair_steps"] == metrics["steps"] - 6


@pytest.mark.usefixtures("short")
def test_what_was_forgotten_without_pairs_is_taught_to_the_end(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial is passed, and then the conversations make the model forget."""
    for name, value in {"DECAY": 40, "STRETCH": 20}.items():
        monkeypatch.setattr(warm_start, name, value)
    tries = iter([0.95, 0.4, 0.95, 0.95])  # passed, forgotten; passed, and still known
    monkeypatch.setattr(warm_start, "right_answers", lambda core, held_out: next(tries))
    metrics = WarmStart(steps=400, until=0.9).run(learner.core, mumbles(64), pairs(32), pairs(96))[1]
    assert metrics["passed"] == 1.0 and metrics["probe"] == 0.95
    assert metrics["steps"] == 20 + 40 + 20 + 40 and metrics["pair_steps"] == 20 + 20 + 40
    tries = iter([0.95, 0.4])
    metrics = WarmStart(steps=100, until=0.9).run(learner.core, mumbles(64), pairs(32), pairs(96))[1]
    assert metrics["passed"] == 0.0 and metrics["steps"] <= 100, "too few steps are left for more"


def test_the_loss_of_pairs_is_that_of_their_margins(learner: Learner) -> None:
    """Computed from the log-probabilities of whole conversations; a minibatch's parts add up to its mean."""
    table = pairs(PAIRS)
    dialogues = Dialogues.read(table)
    logprobs = learner.core.evaluate("policy", turn_tokens(dialogues))["logprobs"]
    margin = logprobs.reshape(PAIRS, 2, 2).sum(axis=2) @ np.array([1.0, -1.0])
    contrasts = Contrasts(dialogues)
    found = torch.from_numpy(learner.core.evaluate("policy", contrasts.rows)["logprobs"])
    items, loss = torch.arange(len(found)), contrasts.loss(PAIRS)
    halves = [items[contrasts.answer < PAIRS], items[contrasts.answer >= PAIRS]]
    parts = [loss({"logprobs": found[half]}, half)[0].item() for half in halves]
    assert sum(parts) == pytest.approx(np.log1p(np.exp(-margin)).mean(), abs=1e-5)
    assert loss({"logprobs": found[:0]}, items[:0])[0].item() == 0.0


@pytest.mark.usefixtures("short")
def test_it_says_that_the_steps_ran_out(learner: Learner) -> None:
    metrics = WarmStart(steps=20, until=0.99).run(learner.core, echoes(64), pairs(32))[1]
    assert metrics["steps"] == 20 and metrics["passed"] == 0.0 and metrics["probe"] < 0.99


@pytest.mark.usefixtures("short")
def test_without_pairs_it_ends_when_the_held_out_loss_has_stopped_falling(learner: Learner) -> None:
    held_out = echoes(96).slice(64)
    metrics = WarmStart(steps=1000, until=0.9, pairs=False).run(learner.core, echoes(64), held_out)[1]
    assert metrics["passed"] == 1.0 and metrics["steps"] < 1000 and "probe" not in metrics
    assert metrics["held_out_loss"] < 0.6 * metrics["first_loss"]


def test_the_probe_reads_the_last_turn_alone(learner: Learner) -> None:
    """What the agent said before is the pair's state; exchanged, the two answers have the other probability."""
    two = from_table(pairs(1))
    before = from_table(echoes(2))[1].turns
    longer = [replace(talk, turns=[*before, *talk.turns]) for talk in two]
    first, second = (right_answers(learner.core, to_table(some)) for some in (longer, longer[::-1]))
    assert first == pytest.approx(1 - second) and first != pytest.approx(0.5, abs=1e-6)
    assert first != pytest.approx(right_answers(learner.core, to_table(two)), abs=1e-6)


def test_long_answers_of_a_pair_stay_in_one_row() -> None:
    """Otherwise two processes could have one each, and neither the margin."""
    talk = from_table(echoes(1))[0]
    both = [replace(talk, turns=[talk.turns[0], agent_turn([said] * 400)]) for said in (5, 6)]
    assert len(Contrasts(Dialogues.read(to_table(both))).rows) == 1


def test_when_a_loss_has_stopped_falling() -> None:
    falling = list(1.0 - 0.05 * np.arange(10))
    assert not stopped_falling(falling)
    assert not stopped_falling([1.0, 1.0, 1.0])  # too few to tell
    assert stopped_falling([*falling, 0.549, 0.55, 0.551, 0.549])
    assert not stopped_falling([*falling, 0.56, 0.57, 0.56, 0.5])
