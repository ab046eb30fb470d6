"""Turn-level advantages with the KL inside: against a loop, against the exact game, and two processes against one."""

from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from mtrl_ray.dialogue.conversation import Conversation, from_table, to_table
from mtrl_ray.errors import DataError
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.conversations import ConversationImprovement
from mtrl_ray.learner.methods.turn_advantages import TurnAdvantages
from mtrl_ray.learner.rows.batch import Batch
from mtrl_ray.learner.sections import KL, Fit
from mtrl_ray.objectives.advantages import turn_gae
from mtrl_ray.objectives.regularised_rewards import on_arrival
from mtrl_ray.tabular.equilibrium import nash_equilibrium
from mtrl_ray.tabular.games import SHAPES, random_games
from mtrl_ray.tabular.values import preference_values
from tests.learner.examples import grouped
from tests.learner.test_group import flat, group, settings_for

ALPHA, LAMBDA, TOKEN_LAMBDA = 0.3, 0.8, 0.6
FIT = Fit(epochs=1, minibatch_conversations=4)


def spec(value: str, **changes) -> TurnAdvantages:
    given = {"gae_lambda": LAMBDA, "token_lambda": TOKEN_LAMBDA, "whiten": False, "fit": FIT}
    return TurnAdvantages(value=value, **(given | changes))


@pytest.fixture
def talks():
    """Conversations of 1 to 4 agent turns; their behaviour log-probabilities are nobody's in particular."""
    table = grouped(seed=4, contexts=5, samples=2)
    generator, found = np.random.default_rng(0), from_table(table)
    for talked in found:
        for turn in talked.agent_turns:
            tokens = talked.turns[turn].tokens
            talked.turns[turn].logprobs = (-2.0 - generator.random(len(tokens))).tolist()
    return to_table(found)


@pytest.fixture
def terminal() -> np.ndarray:
    first = np.random.default_rng(1).random(5).astype(np.float32)
    return np.stack([first, 1 - first], axis=1).ravel()


def divergences(learner: Learner, talked: Conversation) -> list[list[float]]:
    """log π(y) - log μ(y) of each token of each agent turn, μ being the learner's policy, read token by token."""
    with torch.no_grad():
        logits = learner.core.models.network(torch.tensor([talked.tokens])).logits[0].log_softmax(-1)
    found = []
    for turn in talked.agent_turns:
        start = len(talked.history(turn))
        tokens, logprobs = talked.turns[turn].tokens, talked.turns[turn].logprobs
        found.append(
            [lp - float(logits[start + k - 1, t]) for k, (t, lp) in enumerate(zip(tokens, logprobs, strict=True))]
        )
    return found


def backwards(rewards: list[float], values: list[float], lam: float) -> tuple[list[float], list[float]]:
    """GAE and λ-returns by the definition, without discount."""
    advantages = [0.0] * len(rewards)
    for k in reversed(range(len(rewards))):
        last = k + 1 == len(rewards)
        delta = rewards[k] + (0.0 if last else values[k + 1]) - values[k]
        advantages[k] = delta + (0.0 if last else lam * advantages[k + 1])
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def warmed(learner: Learner, talks, terminal) -> tuple[np.ndarray, np.ndarray]:
    """Values of turns and of tokens that are not all alike, as the learner will read them."""
    for value in ("turn", "token"):
        spec(value, fit=Fit(epochs=4, learning_rate=1e-2)).run(learner.core, talks, terminal, ALPHA)
    batch = Batch.read(talks)
    turns = learner.core.evaluate("value", batch.state_rows)["values"]
    tokens = learner.core.evaluate("critic", batch.token_rows)["values"]
    assert turns.std() > 0.01 and tokens.std() > 0.01
    return turns, tokens


def test_values_of_turns_are_those_of_a_naive_loop(learner, talks, terminal):
    values, _ = warmed(learner, talks, terminal)
    found, numbers = spec("turn").run(learner.core, talks, terminal, ALPHA)
    expected, paid, start = [], [], 0
    for talked, end in zip(from_table(talks), terminal, strict=True):
        kl = divergences(learner, talked)
        sums = [sum(turn) for turn in kl]
        rewards = [-ALPHA * sums[k + 1] for k in range(len(kl) - 1)] + [float(end)]
        advantages, _ = backwards(rewards, values[start : start + len(kl)].tolist(), LAMBDA)
        for turn, advantage in zip(kl, advantages, strict=True):
            expected += [advantage - ALPHA * sum(turn[k + 1 :]) for k in range(len(turn))]
        start, paid = start + len(kl), [*paid, sum(sums)]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert numbers["kl_conversation"] == pytest.approx(np.mean(paid), abs=1e-4)
    assert numbers["kl_turn"] == pytest.approx(sum(paid) / len(values), abs=1e-4)
    assert numbers["terminal"] == pytest.approx(0.5)


def test_values_of_tokens_are_those_of_a_naive_loop(learner, talks, terminal):
    _, values = warmed(learner, talks, terminal)
    found, _ = spec("token").run(learner.core, talks, terminal, ALPHA)
    expected: list[float] = []
    for talked, end in zip(from_table(talks), terminal, strict=True):
        kl = [entry for turn in divergences(learner, talked) for entry in turn]
        rewards = [-ALPHA * entry for entry in kl[1:]] + [float(end)]
        start = len(expected)
        expected += backwards(rewards, values[start : start + len(kl)].tolist(), TOKEN_LAMBDA)[0]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_the_hybrid_is_turns_outside_and_tokens_inside(learner, talks, terminal):
    of_turns, of_tokens = warmed(learner, talks, terminal)
    found, numbers = spec("hybrid").run(learner.core, talks, terminal, ALPHA)
    expected: list[float] = []
    turn = 0
    for talked, end in zip(from_table(talks), terminal, strict=True):
        kl = divergences(learner, talked)
        rewards = [-ALPHA * sum(kl[k + 1]) for k in range(len(kl) - 1)] + [float(end)]
        _, returns = backwards(rewards, of_turns[turn : turn + len(kl)].tolist(), LAMBDA)
        for own, worth in zip(kl, returns, strict=True):
            start = len(expected)
            inside = [-ALPHA * entry for entry in own[1:]] + [worth]
            expected += backwards(inside, of_tokens[start : start + len(own)].tolist(), TOKEN_LAMBDA)[0]
        turn += len(kl)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert numbers["value_loss"] > 0 and numbers["critic_loss"] > 0


def test_scores_end_a_conversation_where_nothing_else_does(learner, talks):
    scores = talks["score"].to_numpy()
    given, _ = spec("turn").run(learner.core, talks, scores, ALPHA)
    learner.core.models._made.clear()
    learner.core.models._optimisers.clear()
    learner.core.references.forget_initial()
    np.testing.assert_array_equal(spec("turn").run(learner.core, talks, None, ALPHA)[0], given)


def test_whitening_is_over_turns(learner, talks, terminal):
    found, numbers = spec("turn", whiten=True).run(learner.core, talks, terminal, 0.0)
    lengths = Batch.read(talks).turn_lengths
    per_turn = found[np.cumsum(lengths) - 1]
    np.testing.assert_array_equal(np.repeat(per_turn, lengths), found)
    assert per_turn.mean() == pytest.approx(0, abs=1e-5) and per_turn.std(ddof=1) == pytest.approx(1, abs=1e-4)
    assert 0 < numbers["deviation"] < 1


def test_what_cannot_be_a_terminal_reward_is_refused(learner, talks, terminal):
    for wrong in (terminal[:-1], np.where(np.arange(10) == 3, np.nan, terminal)):
        with pytest.raises(DataError, match="10 conversations need as many finite terminal rewards"):
            spec("turn").run(learner.core, talks, wrong, ALPHA)


def test_sampled_advantages_are_those_of_the_game_on_average():
    """`on_arrival` and `turn_gae` on conversations of an exact game, λ = 1: their mean is Q(s, a) - V(s)."""
    game = random_games(SHAPES[1], 1, np.random.default_rng(3))
    mdp, policy = game.mdp, nash_equilibrium(game)
    values = preference_values(game, policy, policy)
    generator, count = np.random.default_rng(5), 60_000
    state = np.zeros(count, dtype=np.int64)
    states, actions, ratios, exact = [], [], [], []
    for turn in range(mdp.horizon):
        weights = np.exp(policy[turn][0, 0])
        action = (generator.random(count)[:, None] > weights.cumsum(-1)[state]).sum(-1).clip(max=weights.shape[1] - 1)
        ratios.append((policy[turn] - game.reference[turn])[0, 0][state, action])
        exact.append((values.q[turn] - values.v[turn][..., None])[0, 0][state, action])
        states.append(state)
        actions.append(action)
        onward = mdp.transitions[turn][0, 0].cumsum(-1)[state, action]
        state = (generator.random(count)[:, None] > onward).sum(-1).clip(max=onward.shape[1] - 1)
    present = torch.ones(count, mdp.horizon, dtype=torch.bool)
    alpha = float(game.alpha[0])
    penalties = [(np.exp(p) * (p - m)).sum(-1)[0, 0] for p, m in zip(policy, game.reference, strict=True)]
    baseline = [values.v[turn][0, 0] + alpha * penalties[turn] for turn in range(mdp.horizon)]
    u = torch.tensor(np.stack([baseline[turn][states[turn]] for turn in range(mdp.horizon)], axis=1))
    terminal = torch.tensor(values.v[-1][0, 0][state])
    rewards = on_arrival(terminal, torch.tensor(np.stack(ratios, axis=1)), present, alpha)
    advantages, _ = turn_gae(rewards, u, present, 1.0, 1.0)
    for turn in range(mdp.horizon):
        pairs = states[turn] * 100 + actions[turn]
        for pair in np.unique(pairs):
            here = pairs == pair
            sampled = advantages[here, turn].numpy()
            error = 5 * sampled.std() / np.sqrt(here.sum()) + 1e-9
            assert abs(sampled.mean() - exact[turn][here][0]) < error, (turn, pair)


def test_the_plain_objective_and_the_proximal_term(learner, talks, terminal, policy_folder, settings):
    """One step at π = π_old: plain and clipped have one gradient, the proximal term none; later it holds back."""
    advantages, _ = spec("turn").run(learner.core, talks, terminal, ALPHA)
    common = {
        "minibatch_conversations": 1000,
        "kl": KL(coefficient=0.0),
        "entropy_bonus": 0.0,
        "max_gradient_norm": None,
    }

    def moved(**changes) -> tuple[dict[str, float], np.ndarray]:
        fresh = Learner(settings, policy_folder, seed=3)
        numbers = ConversationImprovement(**(common | changes)).run(fresh.core, talks, advantages)[1]
        return numbers, flat(fresh.weights(1))

    clipped, weights = moved()
    plain, same = moved(objective="plain")
    assert plain["gradient_norm"] == pytest.approx(clipped["gradient_norm"], rel=1e-3)
    np.testing.assert_allclose(same, weights, atol=1e-4)
    assert np.array_equal(moved(previous_kl=10.0)[1], weights)
    free = moved(epochs=6, objective="plain")[0]["kl_step"]
    assert moved(epochs=6, objective="plain", previous_kl=5.0)[0]["kl_step"] < 0.8 * free


def test_samples_of_a_mixture_are_corrected(learner, talks, terminal):
    """Fresh tokens of the policy itself need no weights; the same tokens, of a mixture, do."""
    found = from_table(talks)
    for talked in found:
        for turn in talked.agent_turns:
            talked.turns[turn].versions = [0] * len(talked.turns[turn].tokens)
    fresh = to_table(found)
    advantages, _ = spec("turn").run(learner.core, fresh, terminal, ALPHA)
    own = ConversationImprovement(learning_rate=1e-9).run(learner.core, fresh, advantages)[1]
    assert own["importance_weight"] == 1.0
    learner.core.references.policy_steps = learner.core.references.published_at
    mixed = ConversationImprovement(learning_rate=1e-9).run(learner.core, fresh, advantages, None, 0.1)[1]
    assert mixed["importance_weight"] != 1.0


def test_two_processes_give_the_result_of_one(ray_cluster: None, policy_folder: Path, talks, terminal) -> None:
    tables = [ray.put(talks), ray.put(terminal)]
    given = spec("hybrid", whiten=True)
    with group(2, policy_folder) as two:
        found, numbers = two.run(given, *tables, ALPHA)
        again, _ = two.run(given, *tables, ALPHA)
        found, numbers, again = ray.get([found, numbers, again], timeout=120)
    alone = Learner(settings_for(1), policy_folder, seed=3)
    expected, theirs = given.run(alone.core, talks, terminal, ALPHA)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert numbers == pytest.approx(theirs, abs=1e-4)
    np.testing.assert_allclose(again, given.run(alone.core, talks, terminal, ALPHA)[0], atol=1e-3)
