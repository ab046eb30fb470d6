"""Credit and improvement on whole conversations: naive gradients, every scheme and estimator, partial groups."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaForCausalLM

from mtrl_ray.dialogue.conversation import TURN_WEIGHTS, Conversation, Finish, from_table, to_table
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.advantages import Advantages
from mtrl_ray.learner.methods.conversations import ConversationImprovement
from mtrl_ray.learner.methods.prm import ImplicitRewards, PRMFit
from mtrl_ray.learner.methods.turn_advantages import TurnAdvantages
from mtrl_ray.learner.methods.turn_rewards import TurnRewards
from mtrl_ray.learner.rows.batch import Batch
from mtrl_ray.learner.sections import KL, Fit
from mtrl_ray.settings.tree import LearnerSettings
from tests.learner.examples import grouped

SCHEMES = ["outcome", "environment", "uniform", "value", "judge", "prime", "itpo", "norm_itpo"]
PRICE = 0.01


@pytest.fixture(scope="module")
def talks() -> pa.Table:
    """Twelve conversations on four contexts."""
    return grouped(seed=8, contexts=4, samples=3)


@pytest.fixture(scope="module")
def judged(talks: pa.Table) -> pa.Table:
    """The same with a judge's weights: the later a turn, the more."""
    weights = [[1.0 + turn for turn in range(len(talked.agent_turns))] for talked in from_table(talks)]
    return talks.append_column(TURN_WEIGHTS, pa.array(weights, pa.list_(pa.float32())))


def turn_lengths(talked: Conversation) -> list[int]:
    return [len(talked.turns[turn].tokens) for turn in talked.agent_turns]


def by_turn(table: pa.Table, flat: np.ndarray) -> list[list[np.ndarray]]:
    """[agent tokens] as a list per conversation of a list per turn."""
    talks = from_table(table)
    parts = iter(np.split(flat, np.cumsum([length for talked in talks for length in turn_lengths(talked)])[:-1]))
    return [[next(parts) for _ in talked.agent_turns] for talked in talks]


def rewards_of(learner: Learner, table: pa.Table, scheme: str, **more: Any) -> tuple[np.ndarray, dict[str, float]]:
    spec = TurnRewards(scheme=scheme, length_penalty=PRICE, **more)
    implicit = None
    if scheme in ("prime", "itpo", "norm_itpo"):
        PRMFit(learning_rate=3e-3).run(learner.core, table)
        implicit = ImplicitRewards(0.05).run(learner.core, table)[0]
    return spec.run(learner.core, table, implicit)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_places_what_it_splits(learner: Learner, judged: pa.Table, scheme: str) -> None:
    rewards, numbers = rewards_of(learner, judged, scheme)
    if scheme == "value":  # the second fit predicts with a head that has learned something
        rewards, numbers = rewards_of(learner, judged, scheme)
        assert numbers["value_loss"] > 0
    split = scheme in ("outcome", "uniform", "judge", "norm_itpo")
    totals = []
    for talked, turns in zip(from_table(judged), by_turn(judged, rewards), strict=True):
        words = [len(talked.turns[turn].text.split()) for turn in talked.agent_turns]
        outcome = talked.score - PRICE * sum(words)
        totals.append(outcome)
        if split:
            assert sum(turn.sum() for turn in turns) == pytest.approx(outcome, abs=1e-5)
        if scheme != "prime":
            assert all((turn[:-1] == 0).all() for turn in turns)
        else:
            assert all((turn != 0).all() for turn in turns)
        if scheme == "outcome":
            assert all(turn[-1] == 0 for turn in turns[:-1])
        if scheme == "judge":
            count = len(turns)
            for number, turn in enumerate(turns):
                share = (number + 1) / (count * (count + 1) / 2)
                assert turn[-1] == pytest.approx(talked.score * share - PRICE * words[number], abs=1e-5)
    assert numbers["outcome"] == pytest.approx(np.mean(totals), abs=1e-5)


def test_turn_sums_of_tokens_are_what_itpo_adds_to_the_outcome(policy_folder: Path, talks: pa.Table) -> None:
    learner = Learner(LearnerSettings(threads=1), policy_folder, seed=3)
    PRMFit(learning_rate=3e-3).run(learner.core, talks)
    implicit = ImplicitRewards(0.5).run(learner.core, talks)[0]
    specs = [
        TurnRewards(scheme=name, rescale=False, length_penalty=0.0, outcome_weight=2.0) for name in ("itpo", "prime")
    ]
    itpo, prime = (by_turn(talks, spec.run(learner.core, talks, implicit)[0]) for spec in specs)
    for talked, tokens, turns, dense in zip(from_table(talks), by_turn(talks, implicit), itpo, prime, strict=True):
        for number, (own, placed, spread) in enumerate(zip(tokens, turns, dense, strict=True)):
            last = 2.0 * talked.score * (number == len(tokens) - 1)
            assert placed[-1] == pytest.approx(own.sum() + last, abs=1e-5)
            assert spread.sum() == pytest.approx(own.sum() + last, abs=1e-5)
            np.testing.assert_allclose(spread[:-1], own[:-1], atol=1e-6)


def test_the_size_of_micro_batches_changes_nothing(policy_folder: Path, talks: pa.Table) -> None:
    def numbers(budget: int) -> list[np.ndarray]:
        settings = LearnerSettings(threads=1, tokens_per_microbatch=budget)
        learner, found = Learner(settings, policy_folder, seed=3), []
        for scheme, estimator in (("norm_itpo", "rloo"), ("value", "ppo")):
            rewards, _ = rewards_of(learner, talks, scheme)
            advantages, _ = Advantages(estimator=estimator).run(learner.core, talks, rewards)
            metrics = ConversationImprovement(aggregation="turn").run(learner.core, talks, advantages)[1]
            found += [rewards, advantages, np.array([metrics["policy_loss"], metrics["entropy"]])]
        return found

    for ours, whole in zip(numbers(64), numbers(16_384), strict=True):
        np.testing.assert_allclose(ours, whole, atol=1e-3)


@pytest.mark.parametrize("aggregation", ["token", "turn", "conversation"])
def test_the_first_gradient_is_the_policy_gradient(
    learner: Learner, policy_folder: Path, talks: pa.Table, aggregation: str
) -> None:
    held = from_table(talks)
    counts = [sum(turn_lengths(talked)) for talked in held]
    advantages = np.random.default_rng(0).standard_normal(sum(counts)).astype(np.float32)
    spec = ConversationImprovement(
        minibatch_conversations=1000,
        aggregation=aggregation,
        importance_cap=None,
        max_gradient_norm=None,
        entropy_bonus=0.0,
        kl=KL(coefficient=0.1, kind="k3", place="loss"),
    )
    metrics = spec.run(learner.core, talks, advantages)[1]
    model = LlamaForCausalLM.from_pretrained(policy_folder)
    turns = sum(len(talked.agent_turns) for talked in held)
    for talked, parts in zip(held, by_turn(talks, advantages), strict=True):
        tokens, mask = torch.tensor([talked.tokens]), torch.from_numpy(talked.mask)
        logprobs = model(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0][mask[1:]]
        lengths = torch.tensor(turn_lengths(talked))
        share = {
            "token": torch.full((int(lengths.sum()),), 1 / sum(counts)),
            "turn": (1 / lengths).repeat_interleave(lengths) / turns,
            "conversation": torch.full((int(lengths.sum()),), 1 / int(lengths.sum()) / len(held)),
        }[aggregation]
        (-(logprobs * torch.from_numpy(np.concatenate(parts)) * share).sum()).backward()
    norm = torch.cat([value.grad.flatten() for value in model.parameters()]).norm()
    assert metrics["gradient_norm"] == pytest.approx(float(norm), rel=1e-4), "the KL to itself has no gradient"
    assert metrics["kl_reference"] == pytest.approx(0.0, abs=1e-6) and metrics["clip_fraction"] == 0.0


def count_tokens(table: pa.Table) -> int:
    return sum(sum(turn_lengths(talked)) for talked in from_table(table))


def test_what_has_a_positive_advantage_becomes_likelier(learner: Learner, talks: pa.Table) -> None:
    ends = np.concatenate([np.arange(n) == n - 1 for talked in from_table(talks) for n in turn_lengths(talked)])
    tokens = np.concatenate([talked.turns[k].tokens for talked in from_table(talks) for k in talked.agent_turns])
    good, bad = ends & (tokens == 1), ends & (tokens == 2)
    rows = Batch.read(talks).token_rows
    before = learner.core.evaluate("policy", rows)["logprobs"]
    wanted = good.astype(np.float32) - bad.astype(np.float32)
    spec = ConversationImprovement(epochs=4, minibatch_conversations=-(-len(talks) // 4), learning_rate=3e-3)
    metrics = spec.run(learner.core, talks, wanted)[1]
    change = learner.core.evaluate("policy", rows)["logprobs"] - before
    assert change[good].mean() > 0.1 and change[bad].mean() < -0.1, (change[good].mean(), change[bad].mean())
    assert metrics["policy_steps"] == 16 and metrics["trained_tokens"] == 4 * len(tokens)


def naive_returns(turns: list[np.ndarray]) -> list[float]:
    totals = [float(turn.sum()) for turn in turns]
    return [sum(totals[number:]) for number in range(len(totals))]


@pytest.mark.parametrize("dropped", [[], [1], [0, 1, 4], [3, 4, 6, 7, 8]])
def test_partial_groups_are_compared_with_who_is_there(learner: Learner, talks: pa.Table, dropped: list[int]) -> None:
    """Every token's advantage is its return less the others' mean return from the same turn on; alone it is zero."""
    kept = talks.take([row for row in range(talks.num_rows) if row not in dropped])
    rewards = np.random.default_rng(1).random(count_tokens(kept)).astype(np.float32)
    advantages, _ = Advantages(whiten=False).run(learner.core, kept, rewards)
    held, parts = from_table(kept), by_turn(kept, rewards)
    returns = [naive_returns(turns) for turns in parts]
    for i, (talked, turns) in enumerate(zip(held, by_turn(kept, advantages), strict=True)):
        others = [j for j, other in enumerate(held) if other.context_id == talked.context_id and j != i]
        for k, turn in enumerate(turns):
            after = np.cumsum(parts[i][k][::-1])[::-1] + (returns[i][k + 1] if k + 1 < len(returns[i]) else 0.0)
            baseline = np.mean([returns[j][min(k, len(returns[j]) - 1)] for j in others]) if others else 0.0
            np.testing.assert_allclose(turn, after - baseline if others else 0.0, atol=1e-4)


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_a_turn_is_credited_with_its_own_reward_alone(learner: Learner, talks: pa.Table, estimator: str) -> None:
    rewards = np.random.default_rng(1).random(count_tokens(talks)).astype(np.float32)
    spec = Advantages(estimator=estimator, baseline="own_turn", whiten=False)
    advantages, _ = spec.run(learner.core, talks, rewards)
    held, parts = from_table(talks), by_turn(talks, rewards)
    own = [[float(turn.sum()) for turn in turns] for turns in parts]
    for i, (talked, turns) in enumerate(zip(held, by_turn(talks, advantages), strict=True)):
        group = [j for j, other in enumerate(held) if other.context_id == talked.context_id]
        others = [j for j in group if j != i]
        longest = max(len(one) for one in own)
        aligned = np.array([[own[j][min(k, len(own[j]) - 1)] for k in range(longest)] for j in group])
        scale = 1 / (1e-6 + np.sqrt(aligned.var(axis=0, ddof=1).mean())) if estimator == "grpo" else 1.0
        for k, turn in enumerate(turns):
            within = np.cumsum(parts[i][k][::-1])[::-1]
            compared = group if estimator == "grpo" else others
            baseline = np.mean([own[j][min(k, len(own[j]) - 1)] for j in compared])
            np.testing.assert_allclose(turn, (within - baseline) * scale, rtol=1e-3, atol=1e-4)


def test_exact_gains_are_taken_as_they_are(learner: Learner, talks: pa.Table) -> None:
    held = from_table(talks)
    for number, talked in enumerate(held):
        gains = {f"gain_{turn}": 0.1 * (turn + number % 2) for turn in range(len(talked.agent_turns))}
        talked.metrics = {"expected": sum(gains.values()), **gains}
    spec = TurnRewards(scheme="exact", length_penalty=PRICE)
    rewards, _ = spec.run(learner.core, to_table(held))
    for talked, turns in zip(held, by_turn(talks, rewards), strict=True):
        for number, (turn, place) in enumerate(zip(turns, talked.agent_turns, strict=True)):
            words = len(talked.turns[place].text.split())
            assert turn[-1] == pytest.approx(talked.metrics[f"gain_{number}"] - PRICE * words, abs=1e-5)
            assert (turn[:-1] == 0).all()
    held[5].metrics["expected"] += 0.5
    with pytest.raises(DataError, match=r"sum to the metric 'expected'; those of conversation 'g5' sum to"):
        spec.run(learner.core, to_table(held))
    with pytest.raises(DataError, match="expected is nan: use an environment that knows them"):
        spec.run(learner.core, talks)


def test_gae_bridges_what_the_user_says(learner: Learner, talks: pa.Table) -> None:
    rewards = np.random.default_rng(1).random(count_tokens(talks)).astype(np.float32)
    spec = Advantages(estimator="ppo", gae_lambda=1.0, whiten=False, critic=Fit(epochs=1))
    first, _ = spec.run(learner.core, talks, rewards)
    values = []
    for turns, found in zip(by_turn(talks, rewards), by_turn(talks, first), strict=True):
        returns = np.cumsum(np.concatenate(turns)[::-1])[::-1]
        values.append(returns - np.concatenate(found))
    np.testing.assert_allclose(np.concatenate(values), values[0][0], atol=1e-4)
    _, numbers = spec.run(learner.core, talks, rewards)
    assert numbers["explained_variance"] > 0 and numbers["critic_loss"] > 0


def test_a_critic_learns_what_is_to_come(learner: Learner, talks: pa.Table) -> None:
    rewards, _ = rewards_of(learner, talks, "outcome")
    spec = Advantages(estimator="ppo", critic=Fit(epochs=8, learning_rate=3e-3))
    found = [spec.run(learner.core, talks, rewards)[1]["explained_variance"] for _ in range(3)]
    assert found[0] == pytest.approx(0.0, abs=1e-5) and found[-1] > 0.3, found


def test_kl_in_the_reward_is_not_this_methods() -> None:
    with pytest.raises(ValueError, match=r"kl\.place is reward.*place: loss"):
        ConversationImprovement(kl=KL(place="reward"))
    with pytest.raises(ValueError, match="pooled belongs to rloo alone"):
        Advantages(estimator="grpo", baseline="pooled")
    with pytest.raises(ValueError, match="own_turn and estimator is ppo"):
        Advantages(estimator="ppo", baseline="own_turn")


def test_the_environments_own_rewards_are_taken_as_they_are(learner: Learner, talks: pa.Table) -> None:
    rewards, numbers = TurnRewards(scheme="environment", length_penalty=PRICE).run(learner.core, talks)
    for talked, turns in zip(from_table(talks), by_turn(talks, rewards), strict=True):
        for turn, own in zip(talked.agent_turns, turns, strict=True):
            said = talked.turns[turn]
            assert own[-1] == pytest.approx(said.reward - PRICE * len(said.text.split()), abs=1e-6)
    assert numbers["environment"] == pytest.approx(np.mean([sum(talked.rewards) for talked in from_table(talks)]))


def test_rewards_that_nobody_would_learn_from_are_no_silence(learner: Learner, talks: pa.Table) -> None:
    """An environment that rewards turns and scores nothing."""
    held = from_table(talks)
    for talked in held:
        talked.score = 0.0
    unscored = to_table(held)
    for operation in (TurnRewards(scheme="outcome"), PRMFit(), TurnAdvantages()):
        with pytest.raises(
            DataError, match=r"rewards turns, but all 12 conversations have score 0.*scheme: environment"
        ):
            operation.run(learner.core, unscored)
    assert TurnRewards(scheme="environment").run(learner.core, unscored)[0].any()
    for talked in held:
        for turn in talked.turns:
            turn.reward = 0.0
    TurnRewards(scheme="outcome").run(learner.core, to_table(held))  # a policy that earns nothing yet


def test_truncated_answers_are_counted(learner: Learner, talks: pa.Table) -> None:
    held = from_table(talks)
    for talked in held:
        talked.turns[talked.agent_turns[0]].finish = Finish.LENGTH
    table, advantages = to_table(held), np.ones(count_tokens(talks), dtype=np.float32)
    numbers = ConversationImprovement().run(learner.core, table, advantages)[1]
    assert numbers["truncated"] == pytest.approx(12 / sum(len(talked.agent_turns) for talked in held))


def without(table: pa.Table, **changes: Any) -> pa.Table:
    talked = from_table(table)
    for name, value in changes.items():
        setattr(talked[0].turns[talked[0].agent_turns[0]], name, value)
    return to_table(talked)


def test_what_cannot_be_is_refused(learner: Learner, talks: pa.Table, judged: pa.Table) -> None:
    with pytest.raises(DataError, match=r"'g0' has an agent turn of \d+ tokens with 0 log-probabilities"):
        Advantages().run(learner.core, without(talks, logprobs=[], versions=[]), np.zeros(1, dtype=np.float32))
    with pytest.raises(DataError, match="need as many finite rewards; 1 were given"):
        Advantages().run(learner.core, talks, np.zeros(1, dtype=np.float32))
    with pytest.raises(DataError, match="need as many finite advantages"):
        ConversationImprovement().run(learner.core, talks, np.full(count_tokens(talks), np.nan, dtype=np.float32))
    with pytest.raises(ConfigurationError, match="'itpo' scores with implicit rewards; none were given"):
        TurnRewards(scheme="itpo").run(learner.core, talks)
    with pytest.raises(DataError, match="takes the column 'turn_weights'"):
        TurnRewards(scheme="judge").run(learner.core, talks)
    wrong = pa.array([[1.0]] * judged.num_rows, pa.list_(pa.float32()))
    with pytest.raises(DataError, match="turn_weights gives another number"):
        TurnRewards(scheme="judge").run(learner.core, talks.append_column(TURN_WEIGHTS, wrong))


def test_the_users_own_record_is_compared_with(learner: Learner, talks: pa.Table) -> None:
    held = from_table(talks)
    for talked in held:
        count = len(talked.agent_turns)
        talked.metrics = {f"gain_{turn}": float(turn == count - 1) for turn in range(count)}
    _, numbers = TurnRewards(scheme="judge").run(
        learner.core,
        to_table(held).append_column(
            TURN_WEIGHTS,
            pa.array([[1.0 + turn for turn in range(len(one.agent_turns))] for one in held], pa.list_(pa.float32())),
        ),
    )
    choices = [talked for talked in held if len(talked.agent_turns) > 1]
    assert numbers["agreement"] == 1.0, "of conversations that failed, too"
    assert numbers["agreement_chance"] == pytest.approx(np.mean([1 / len(one.agent_turns) for one in choices]))
