"""Preference and reward models: symmetric by construction, the gradient of the pairs' loss, and what each can learn."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, from_table, to_table
from mtrl_ray.errors import CheckpointError, ConfigurationError, DataError
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.pair_models import (
    ConversationRewards,
    PairFit,
    PairQuality,
    Preferences,
    pair_loss,
    pair_rows,
    quality,
)
from mtrl_ray.learner.rows.tables import Dialogues
from tests.learner.examples import VOCABULARY
from tests.learner.test_group import group, settings_for

KINDS = ("preference", "reward")
SPEC = PairFit(epochs=4, minibatch_conversations=8, learning_rate=2e-3)


def talk(name: str, marks: list[int], generator: np.random.Generator) -> Conversation:
    """Turns of noise, one of the `marks` in each."""
    turns = [Turn(Role.SYSTEM, "s", tokens=[5, 6])]
    for mark in marks:
        noise = generator.integers(20, VOCABULARY, generator.integers(1, 4)).tolist()
        turns += [Turn(Role.USER, "u", tokens=[7]), Turn(Role.AGENT, "a", tokens=[*noise, mark])]
    return Conversation(name, "test", "train", "x", turns, 0.5, StopReason.OUTCOME)


def pairs(seed: int, count: int, beats) -> tuple:
    """`count` pairs of conversations with two marks of three, and their preferences."""
    generator = np.random.default_rng(seed)
    talks, given = [], []
    for number in range(count):
        marks = [[int(generator.integers(0, 3))] * 2 for _ in range(2)]
        talks += [
            talk(f"{number}{side}", [10 + mark for mark in own], generator)
            for side, own in zip("ab", marks, strict=True)
        ]
        p = beats(marks[0][0], marks[1][0])
        given += [p, 1 - p]
    return to_table(talks), np.array(given, dtype=np.float32)


def by_rank(first: int, second: int) -> float:
    return 0.5 + 0.2 * (first - second)


def in_a_circle(first: int, second: int) -> float:
    return (0.5, 0.9, 0.1)[(first - second) % 3]


def swapped(table):
    talks = from_table(table)
    return to_table([one for first, second in zip(talks[::2], talks[1::2], strict=True) for one in (second, first)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_symmetric_by_construction_and_learns(learner, kind):
    table, given = pairs(1, 96, by_rank)
    first = SPEC.run(learner.core, table, given, kind)[1]
    assert first["cross_entropy"] == pytest.approx(np.log(2), abs=1e-3), "it knows nothing yet"
    fresh, truth = pairs(2, 48, by_rank)
    then = SPEC.run(learner.core, fresh, truth, kind)[1]
    assert then["accuracy"] > 0.9 and then["cross_entropy"] < 0.67 and then["calibration"] < 0.12
    found = Preferences(kind).run(learner.core, fresh)[0]
    np.testing.assert_allclose(found[::2] + found[1::2], 1.0, atol=1e-6)
    back = Preferences(kind).run(learner.core, swapped(fresh))[0]
    np.testing.assert_allclose(back.reshape(-1, 2)[:, ::-1].ravel(), found, atol=1e-5)


def test_only_the_preference_model_learns_a_circle(learner):
    table, given = pairs(1, 96, in_a_circle)
    fresh, truth = pairs(2, 60, in_a_circle)
    reached = {}
    for kind in KINDS:
        PairFit(epochs=8, minibatch_conversations=8, learning_rate=2e-3).run(learner.core, table, given, kind)
        reached[kind] = quality(
            Preferences(kind).run(learner.core, fresh)[0].astype(np.float64), truth.astype(np.float64)
        )["accuracy"]
    assert reached["preference"] > 0.9 and reached["reward"] < 0.75, reached


def test_rewards_are_the_log_odds(learner):
    table, given = pairs(1, 16, by_rank)
    SPEC.run(learner.core, table, given, "reward")
    scores = ConversationRewards().run(learner.core, table)[0].astype(np.float64)
    expected = 1 / (1 + np.exp(scores[1::2] - scores[::2]))
    np.testing.assert_allclose(Preferences("reward").run(learner.core, table)[0][::2], expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_has_the_gradient_of_the_cross_entropy(learner, kind):
    """Against autograd on the loss written down per pair, each conversation (or couple) read on its own."""
    table, given = pairs(3, 6, by_rank)
    PairFit(epochs=2, minibatch_conversations=1000).run(learner.core, table, given, kind)
    model, dialogues = learner.core.models.value(kind), Dialogues.read(table)
    rows = pair_rows(dialogues, kind)

    def read(tokens: list[int]) -> torch.Tensor:
        states = model.decoder(torch.tensor([tokens])).last_hidden_state[0, -1]
        return model.head(states[None])[0]

    talks, total = from_table(table), torch.zeros(())
    for first, second, p in zip(talks[::2], talks[1::2], given[::2], strict=True):
        if kind == "reward":
            logit = read(first.tokens) - read(second.tokens)
        else:
            logit = read(first.tokens + second.tokens) - read(second.tokens + first.tokens)
        total = total + torch.nn.functional.binary_cross_entropy_with_logits(logit, torch.tensor(float(p))) / 6
    model.zero_grad()
    total.backward()
    expected = torch.cat([parameter.grad.ravel() for parameter in model.parameters()])
    loss = pair_loss(learner.core, rows, np.arange(len(rows)), given.astype(np.float64), kind)
    values = torch.stack([read(rows.tokens[rows.starts[k] : rows.starts[k + 1]].tolist()) for k in range(len(rows))])
    model.zero_grad()
    value, statistics = loss({"values": values}, torch.arange(len(rows)))
    value.backward()
    found = torch.cat([parameter.grad.ravel() for parameter in model.parameters()])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert float(statistics["loss"]) == pytest.approx(float(total.detach()), abs=1e-5)


def test_even_pairs_and_blind_predictions_are_no_success():
    given = np.array([0.9, 0.1, 0.5, 0.5, 0.2, 0.8])
    assert quality(np.full(6, 0.5), given)["accuracy"] == 0.5
    assert quality(np.array([0.6, 0.4, 0.9, 0.1, 0.9, 0.1]), given)["accuracy"] == 0.5
    assert quality(given, given)["cross_entropy"] == quality(given, given)["entropy"]
    assert "accuracy" not in quality(np.full(2, 0.7), np.full(2, 0.5))


def test_what_is_no_pair_is_refused(learner):
    table, given = pairs(1, 4, by_rank)
    with pytest.raises(DataError, match="7 conversations are no pairs"):
        PairFit().run(learner.core, table.slice(0, 7), given[:7], "reward")
    for wrong in (given[:-1], given * 3):
        with pytest.raises(DataError, match=r"8 conversations need as many preferences in \[0, 1\]"):
            PairFit().run(learner.core, table, wrong, "reward")
    with pytest.raises(ConfigurationError, match="there is no preference model yet"):
        Preferences("preference").run(learner.core, table)
    long = to_table([talk(name, [10] * 40, np.random.default_rng(0)) for name in "ab"])
    with pytest.raises(
        DataError, match="all 1 pairs are longer than the 256 tokens that the preference model may read"
    ):
        PairFit().run(learner.core, long, given[:2], "preference")


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_that_is_too_long_is_left_out_and_counted(learner, policy_folder, settings, kind):
    """The others are learned from as if it had not been there; nothing is said about it."""
    table, given = pairs(1, 24, by_rank)
    marks = [10] * (40 if kind == "preference" else 70)
    long = to_table([talk(name, marks, np.random.default_rng(0)) for name in "ab"])
    mixed, some = pa.concat_tables([table.slice(0, 8), long, table.slice(8)]), np.insert(given, 8, [0.3, 0.7])
    numbers = SPEC.run(learner.core, mixed, some, kind)[1]
    other = Learner(settings, policy_folder, seed=3)
    without = SPEC.run(other.core, table, given, kind)[1]
    assert numbers["too_long"] == 1 and without["too_long"] == 0 and numbers["pairs"] == 24
    assert numbers["loss"] == without["loss"] and numbers["accuracy"] == without["accuracy"]
    preferred = Preferences(kind).run(learner.core, mixed)[0]
    assert np.isnan(preferred[8:10]).all()
    np.testing.assert_array_equal(np.delete(preferred, [8, 9]), Preferences(kind).run(other.core, table)[0])
    assert PairQuality(kind).run(learner.core, mixed, some)[1]["too_long"] == 1
    if kind == "reward":
        assert np.isnan(ConversationRewards().run(learner.core, mixed)[0]).nonzero()[0].tolist() == [8, 9]


def test_models_are_kept_and_adopted(learner, policy_folder, settings, tmp_path):
    table, given = pairs(1, 8, by_rank)
    for kind in KINDS:
        SPEC.run(learner.core, table, given, kind)
    learner.save(tmp_path / "all")
    resumed, other = Learner(settings, policy_folder, seed=3), Learner(settings, policy_folder, seed=4)
    resumed.load(tmp_path / "all")
    for kind in KINDS:
        learner.core.models.value(kind).save(tmp_path / kind)
        other.adopt(kind, tmp_path / kind)
        assert np.array_equal(
            Preferences(kind).run(resumed.core, table)[0], Preferences(kind).run(learner.core, table)[0]
        )
        assert np.array_equal(
            Preferences(kind).run(other.core, table)[0], Preferences(kind).run(learner.core, table)[0]
        )
    SPEC.run(other.core, table, given, "reward")
    further = Preferences("reward").run(other.core, table)[0]
    other.adopt("reward", tmp_path / "reward")
    assert np.array_equal(Preferences("reward").run(other.core, table)[0], further), (
        "what has been learned since is not lost"
    )
    with pytest.raises(CheckpointError):
        Learner(settings, policy_folder, seed=3).adopt("reward", tmp_path / "nothing")


def test_two_processes_fit_as_one_does(ray_cluster: None, policy_folder: Path) -> None:
    table, given = pairs(1, 12, by_rank)
    references = [ray.put(table), ray.put(given)]
    with group(2, policy_folder) as two:
        promised = [two.run(SPEC, *references, kind)[1] for kind in KINDS]
        promised += [two.run(Preferences(kind), references[0])[0] for kind in KINDS]
        fitted, found = (lambda every: (every[:2], every[2:]))(ray.get(promised, timeout=120))
    alone = Learner(settings_for(1), policy_folder, seed=3)
    for kind, theirs in zip(KINDS, fitted, strict=True):
        assert SPEC.run(alone.core, table, given, kind)[1]["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    for kind, theirs in zip(KINDS, found, strict=True):
        np.testing.assert_allclose(Preferences(kind).run(alone.core, table)[0], theirs, atol=1e-3)
