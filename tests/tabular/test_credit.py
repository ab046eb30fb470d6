"""`mtrl credit`: its task and schemes against independent implementations, and what it concludes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mtrl_ray import cli
from mtrl_ray.objectives.advantages import aligned_baseline, turn_gae
from mtrl_ray.objectives.turn_rewards import rescaled, softmax_weights
from mtrl_ray.statistics.power import runs_needed, smallest_difference
from mtrl_ray.tabular.credit import schemes, task
from mtrl_ray.tabular.credit.learning import train, whiten

CONTEXTS, SAMPLES, TURNS = 8, 4, 5
RATES = np.array([0.05, 0.2])


def batch(drawn: bool = False, noise: float = 0.3) -> tuple[np.ndarray, task.Talks]:
    """Logits [2 rates, 3 seeds, …] and conversations of these policies."""
    logits = np.stack([[task.first_logits(seed) for seed in range(3)]] * 2) * np.array([1.0, 2.0])[:, None, None, None]
    generators = [np.random.default_rng(seed) for seed in range(3)]
    draws = task.Draws.make(generators, CONTEXTS, SAMPLES, TURNS)
    return logits, task.hold(task.Task(TURNS, noise, drawn), logits, draws)


def test_answers_follow_the_policy_and_outcomes_the_answers() -> None:
    logits = np.stack([[task.first_logits(1)]])
    draws = task.Draws.make([np.random.default_rng(0)], 400, 20, TURNS)
    talks = task.hold(task.Task(TURNS, 0.25, drawn=True), logits, draws)
    probabilities = torch.tensor(logits[0, 0]).softmax(-1).numpy()
    for kind in range(3):
        said = np.bincount(talks.answers[talks.types == kind], minlength=task.ANSWERS)
        np.testing.assert_allclose(said / said.sum(), probabilities[kind], atol=0.03)
    np.testing.assert_allclose(np.exp(talks.logprobs), probabilities[talks.types, talks.answers])
    assert talks.found.sum() / (talks.answers == 0).sum() == pytest.approx(0.75, abs=0.02)
    assert talks.outcomes.mean() == pytest.approx(talks.found.mean(), abs=0.02)
    assert set(np.unique(talks.outcomes)) == {0.0, 1.0}
    assert task.right(logits)[0, 0] == pytest.approx(probabilities[:, 0].mean())


def test_the_gradient_is_autograds() -> None:
    logits, talks = batch()
    weights = np.random.default_rng(3).normal(size=talks.found.shape)
    parameters = torch.tensor(logits, requires_grad=True)
    part = slice(2, 6)
    types, answers = (torch.tensor(np.ascontiguousarray(x[:, :, part])) for x in (talks.types, talks.answers))
    rate, seed = torch.arange(2).view(2, 1, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1, 1)
    chosen = parameters.log_softmax(-1)[rate, seed, types, answers]
    (chosen * torch.tensor(weights[:, :, part])).sum().backward()
    np.testing.assert_allclose(schemes.score_gradient(logits, talks, weights, part), parameters.grad, atol=1e-10)


def flat(values: np.ndarray) -> torch.Tensor:
    """Of the first rate and seed, [conversations, turns]."""
    return torch.tensor(np.ascontiguousarray(values[0, 0]).reshape(-1, *values.shape[4:]))


@pytest.mark.parametrize("own", [False, True])
def test_the_group_is_the_one_of_the_system(own: bool) -> None:
    _, talks = batch()
    found = flat(schemes.Shared(exact=True, own=own).advantages(talks))
    rewards = flat(talks.found) / TURNS
    returns = rewards if own else rewards.flip(1).cumsum(1).flip(1)
    groups = torch.arange(CONTEXTS).repeat_interleave(SAMPLES)
    baseline, _ = aligned_baseline(returns, torch.ones_like(returns, dtype=torch.bool), groups, "rloo")
    torch.testing.assert_close(found, returns - baseline)


def test_gae_is_the_one_of_the_system() -> None:
    _, talks = batch()
    ppo, value = (schemes.Valued((2, 3), TURNS, gae=gae, own=True) for gae in (True, False))
    for scheme in (ppo, value):
        first = scheme.advantages(talks)
    assert not np.allclose(first, 0)
    errors_of = np.linalg.solve(ppo.squares, ppo.products[..., None])
    values = (ppo._inputs(talks) @ errors_of)[..., 0].reshape(talks.found.shape)
    found = flat(ppo.advantages(talks))
    rewards = flat(schemes.at_end(talks.outcomes, TURNS))
    present = torch.ones_like(rewards, dtype=torch.bool)
    expected, _ = turn_gae(rewards, flat(values), present, 1.0, schemes.LAMBDA)
    torch.testing.assert_close(found, expected)


def test_norm_itpo_is_the_one_of_the_system() -> None:
    logits, talks = batch()
    scheme = schemes.Implicit(logits, RATES, 0.3, normalised=True, own=True)
    found = scheme.advantages(talks)
    tokens = flat(scheme._rewards(talks))
    mask, index = torch.ones_like(tokens, dtype=torch.bool), torch.arange(TURNS).expand(len(tokens), -1)
    weights = softmax_weights(rescaled(tokens, mask), index, mask, TURNS, schemes.ETA, length_normalised=True)
    earned = weights * flat(talks.outcomes[..., None])
    groups = torch.arange(CONTEXTS).repeat_interleave(SAMPLES)
    baseline, _ = aligned_baseline(earned, mask, groups, "rloo")
    torch.testing.assert_close(flat(found), earned - baseline, atol=1e-5, rtol=1e-4)


def test_a_process_reward_model_learns_to_order_conversations() -> None:
    logits, talks = batch(noise=0.0)
    scheme = schemes.Implicit(logits, RATES, 1.0, normalised=True, own=False)
    accuracy = []
    for _ in range(30):
        scheme.advantages(talks)
        accuracy.append(scheme.numbers["pair_accuracy"].mean())
    assert accuracy[0] == pytest.approx(0.5), "equal sums order nothing"
    assert accuracy[-1] > 0.9


def test_whitened_advantages_have_unit_variance_or_none() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, (2, 3, 4, 5, 6))
    values[1, 2] = 7.0
    found = whiten(values)
    np.testing.assert_allclose(found[0].std(axis=(1, 2, 3)), 1.0)
    assert not found[1, 2].any()


def test_exact_credit_of_own_turns_beats_the_shared_outcome_if_outcomes_are_drawn() -> None:
    twelve, made = task.Task(12, 0.3, drawn=True), schemes.schemes()
    outcome, exact, again = (train(twelve, made[name], range(2), 25) for name in ("outcome", "exact-own", "exact-own"))
    np.testing.assert_array_equal(exact.right, again.right)
    np.testing.assert_array_equal(exact.right[0], outcome.right[0])
    assert (exact.areas[exact.best] > outcome.areas[outcome.best] + 0.2).all()


def test_the_smallest_difference_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    n, deviation = 10, 0.04
    effect = smallest_difference(deviation * np.sqrt(n - 1) / np.sqrt(n) * np.array([1.0, -1.0] * (n // 2)))
    samples = rng.normal(effect, deviation, (20_000, n))
    statistics = samples.mean(axis=1) / (samples.std(axis=1, ddof=1) / np.sqrt(n))
    assert (statistics > 2.262).mean() == pytest.approx(0.8, abs=0.03)
    spread = [0.04, -0.04, 0.04, -0.04, 0.0]
    count = runs_needed(spread, 0.03)
    assert 10 <= count <= 20
    assert runs_needed(spread, smallest_difference(spread)) == len(spread)


def test_the_command_writes_page_figure_and_json(tmp_path: Path, monkeypatch, capsys) -> None:
    arguments = ["--seeds", "2", "--iterations", "2", "--out", str(tmp_path), "--json", str(tmp_path / "credit.json")]
    monkeypatch.setattr(sys, "argv", ["mtrl", "credit", *arguments])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    assert not ending.value.code
    rows = json.loads((tmp_path / "credit.json").read_text())["rows"]
    assert len(rows) == 12 * len(schemes.schemes())
    assert {row["difference"]["mean"] for row in rows if row["scheme"] == "outcome"} == {0.0}
    page = (tmp_path / "credit.md").read_text()
    assert f"mtrl credit --seeds 2 --iterations 2 --out {tmp_path}" in page
    assert page.count("| `norm_itpo-own-0.3` |") == 12
    assert "outcome: a draw; noise 0.3" in (tmp_path / "credit.svg").read_text()
