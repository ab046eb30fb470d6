"""The linear Q, its features against one sequence at a time, and the improvement that it drives."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaForCausalLM

from mtrl_ray.dialogue.conversation import StopReason, from_table, to_table
from mtrl_ray.errors import DataError
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.features import TURNS, Features
from mtrl_ray.learner.methods.linear_q import LinearQ, ScoreLinearly, Scores
from mtrl_ray.learner.methods.single_turn import BOUND, MOST_SHARPENING, SingleTurnImprovement
from mtrl_ray.learner.methods.updates import PolicyUpdate
from mtrl_ray.learner.rows.packing import turn_tokens
from mtrl_ray.learner.rows.tables import Dialogues, Responses
from mtrl_ray.learner.sections import KL
from mtrl_ray.settings.tree import LearnerSettings
from tests.learner.examples import answer, talk

FIT = LinearQ(discount=0.9, td_lambda=0.9)
NO_KL = KL(coefficient=0.0, kind="k2", place="loss")


def rewarded(seed: int, count: int, prefix: str) -> pa.Table:
    """Conversations in which a turn is rewarded for its length, as far as noise lets it."""
    talks, generator = from_table(talk(seed=seed, count=count, prefix=prefix)), np.random.default_rng(seed)
    for talked in talks:
        for turn in talked.agent_turns:
            talked.turns[turn].reward = len(talked.turns[turn].tokens) + generator.standard_normal()
    return to_table(talks)


def turns_of(conversations: pa.Table) -> int:
    return sum(len(one.agent_turns) for one in from_table(conversations))


def scores_of(responses: np.ndarray, logged: np.ndarray, confidence: float = 1.0) -> Scores:
    return Scores(responses.astype(np.float32), logged.astype(np.float32), confidence, None)  # type: ignore[arg-type]


def test_features_are_those_of_a_sequence_of_its_own(
    learner: Learner, policy_folder: Path, conversations: pa.Table, responses: pa.Table
) -> None:
    dialogues = Dialogues.read(conversations)
    found = Features.of_responses(learner.core, dialogues, Responses.read(responses, dialogues))
    model, by_id = LlamaForCausalLM.from_pretrained(policy_folder), {one.id: one for one in from_table(conversations)}
    width = model.config.hidden_size
    for number in range(0, responses.num_rows, 7):
        row = responses.slice(number, 1).to_pylist()[0]
        talked = by_id[row["conversation_id"]]
        history, tokens = talked.history(row["turn"]), row["tokens"]
        with torch.no_grad():
            states = model.model(torch.tensor([history + tokens])).last_hidden_state[0, len(history) - 1 : -1]
            every = model.lm_head(states).log_softmax(-1)
        logprobs, entropies = every.gather(1, torch.tensor(tokens)[:, None])[:, 0], -(every.exp() * every).sum(-1)
        expected = [logprobs.sum(), logprobs.mean(), logprobs.min(), entropies.sum(), entropies.mean(), len(tokens)]
        features = found.full[number]
        np.testing.assert_allclose(features[:width], states[0].numpy(), atol=1e-4)
        np.testing.assert_allclose(features[width : 2 * width], states[-1].numpy(), atol=1e-4)
        np.testing.assert_allclose(features[2 * width : -TURNS], [float(value) for value in expected], atol=1e-3)
        assert features[-TURNS:].argmax() == talked.agent_turns.index(row["turn"])
        np.testing.assert_array_equal(found.state[number], np.concatenate([features[:width], features[-TURNS:]]))


def test_what_was_said_has_the_features_of_a_response(learner: Learner, conversations: pa.Table) -> None:
    dialogues = Dialogues.read(conversations)
    said = Responses.logged(dialogues)
    of_turns, of_responses = (
        Features.of_turns(learner.core, dialogues),
        Features.of_responses(learner.core, dialogues, said),
    )
    np.testing.assert_allclose(of_turns.full, of_responses.full, atol=1e-4)


def test_q_predicts_conversations_that_it_was_not_fitted_on(learner: Learner) -> None:
    fit = LinearQ(discount=0.0, td_lambda=1.0)
    older, newest = rewarded(1, 96, "old"), rewarded(2, 32, "new")
    scores, numbers = fit.run(learner.core, newest, older, None)
    assert numbers["r"] > 0.7 and numbers["within_r"] > 0.7 and scores.confidence == 1.0
    assert numbers["value_r"] < numbers["r"], "a state says less than a state and the response"
    assert numbers["conversations"] == 128
    few = fit.run(learner.core, newest, None, None)[1]
    assert few["r"] < numbers["r"] and few["conversations"] == 32


def test_responses_are_scored_and_equal_ones_alike(learner: Learner) -> None:
    newest = rewarded(3, 96, "new")
    responses = answer(newest, seed=5, samples=3)
    count, twice = responses.num_rows, pa.concat_tables([responses, responses])
    scores, _ = LinearQ(0.0, 1.0).run(learner.core, newest, None, twice)
    np.testing.assert_array_equal(scores.responses[:count], scores.responses[count:])
    again, _ = ScoreLinearly().run(learner.core, newest, responses, scores)
    np.testing.assert_allclose(again, scores.responses[:count], atol=1e-4)
    lengths = np.array([len(row) for row in responses["tokens"].to_pylist()])
    assert np.corrcoef(scores.responses[:count], lengths)[0, 1] > 0.8


def test_noise_inspires_no_confidence(learner: Learner) -> None:
    found = []
    for seed in range(4):
        talks, generator = from_table(talk(seed=seed, count=24)), np.random.default_rng(seed)
        for talked in talks:
            for turn in talked.agent_turns:
                talked.turns[turn].reward = 0.0
            talked.turns[talked.agent_turns[-1]].reward = float(generator.random() < 0.5)
        found.append(FIT.run(learner.core, to_table(talks), None, None)[0].confidence)
    assert np.mean(found) < 0.6, found


def told(policy_folder: Path, settings: LearnerSettings, sign: float, seed: int = 7) -> pa.Table:
    """Conversations in which answers that the policy finds likelier are better (sign 1), worse (-1) or neither (0)."""
    core = Learner(settings, policy_folder, seed=seed).core
    generator, talks = np.random.default_rng(seed), from_table(talk(seed=seed, count=64))
    likeliness = Features.of_turns(core, Dialogues.read(to_table(talks))).likeliness
    places = [(talked, turn) for talked in talks for turn in talked.agent_turns]
    for (talked, turn), how in zip(places, likeliness - likeliness.mean(), strict=True):
        talked.turns[turn].reward = float(sign * how / likeliness.std() + 0.3 * generator.standard_normal())
    return to_table(talks)


@pytest.mark.parametrize("sign", [1.0, 0.0, -1.0])
def test_sharpening_is_learned_from_what_likelier_answers_were_worth(
    policy_folder: Path, settings: LearnerSettings, learner: Learner, sign: float
) -> None:
    newest, older = told(policy_folder, settings, sign), told(policy_folder, settings, sign, seed=8)
    fit = LinearQ(discount=0.0, td_lambda=1.0)
    scores, numbers = fit.run(learner.core, newest, older, None)
    dialogues = Dialogues.read(newest)
    likeliness = Features.of_turns(learner.core, dialogues).likeliness
    assert numbers["sharpening"] == scores.sharpening
    if sign > 0:
        assert scores.sharpening * likeliness.std() == pytest.approx(0.9, abs=0.15), "a deviation for a deviation"
        few = fit.run(learner.core, newest.slice(0, 6), None, None)[0].sharpening
        assert 0 < few < scores.sharpening, "a few conversations do not make sure"
    else:
        assert scores.sharpening < 0.02


def test_a_policy_is_sharpened_by_what_was_learned(policy_folder: Path, settings: LearnerSettings) -> None:
    newest = talk(seed=9, count=12)
    responses = answer(newest, seed=5, samples=2)
    flat = np.zeros(responses.num_rows), np.full(turns_of(newest), 0.0)
    update = PolicyUpdate(learning_rate=1e-3, minibatch_conversations=6, epochs=1, kl=NO_KL, kl_limit=None)
    found = {}
    for learned in (0.0, 0.1, 9.0):
        core = Learner(settings, policy_folder, seed=3).core
        scores = replace(scores_of(*flat), sharpening=learned)
        numbers = SingleTurnImprovement(update, sharpening=3.0).run(core, newest, responses, scores)[1]
        entropies = core.evaluate("policy", turn_tokens(Dialogues.read(newest)))["entropies"]
        found[learned] = (numbers["entropy_bonus"], float(entropies.mean()))
    assert [bonus for bonus, _ in found.values()] == pytest.approx([0.0, -0.3, -MOST_SHARPENING])
    assert found[0.0][1] > found[0.1][1] and found[0.0][1] > found[9.0][1]


def test_a_conversation_that_was_cut_is_neither_fitted_nor_improved_on(
    learner: Learner, conversations: pa.Table
) -> None:
    talks = from_table(conversations)
    for talked in talks[::2]:
        talked.stop = StopReason.TOKEN_LIMIT
    scores, numbers = FIT.run(learner.core, to_table(talks), None, None)
    cut = np.concatenate([[number % 2 == 0] * len(talked.agent_turns) for number, talked in enumerate(talks)])
    assert np.isnan(scores.logged[cut]).all() and np.isfinite(scores.logged[~cut]).all()
    assert numbers["cut"] == 6
    for talked in talks:
        talked.stop = StopReason.TOKEN_LIMIT
    with pytest.raises(DataError, match="nothing to fit Q on"):
        FIT.run(learner.core, to_table(talks), None, None)


def test_what_was_said_is_worth_its_lambda_return_less_the_value_of_its_state(
    policy_folder: Path, settings: LearnerSettings
) -> None:
    """V is what is left of the return if λ is 1; with it the advantages of any λ follow, one conversation at a time."""
    newest = rewarded(4, 48, "new")

    def advantages(td_lambda: float) -> list[np.ndarray]:
        found = LinearQ(0.9, td_lambda).run(Learner(settings, policy_folder, seed=3).core, newest, None, None)[0].logged
        counts = np.cumsum([len(one.agent_turns) for one in talks])[:-1]
        return np.split(found.astype(np.float64), counts)

    talks = from_table(newest)
    rewards = [np.array([one.turns[turn].reward for turn in one.agent_turns]) for one in talks]
    returns = [np.array([sum(0.9**k * r for k, r in enumerate(one[j:])) for j in range(len(one))]) for one in rewards]
    values = [total - advantage for total, advantage in zip(returns, advantages(1.0), strict=True)]
    assert np.std(np.concatenate(values)) > 0.1 * np.std(np.concatenate(returns)), "V says something"
    assert np.mean(np.concatenate(values)) == pytest.approx(np.mean(np.concatenate(returns)), rel=0.1)
    for found, earned, value in zip(advantages(0.7), rewards, values, strict=True):
        expected, following = np.zeros(len(earned)), 0.0
        for place in reversed(range(len(earned))):
            after = value[place + 1] if place + 1 < len(earned) else 0.0
            following = expected[place] = earned[place] + 0.9 * after - value[place] + 0.9 * 0.7 * following
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("aggregation", ["token", "turn"])
def test_the_first_gradient_is_the_policy_gradient(
    learner: Learner, policy_folder: Path, conversations: pa.Table, responses: pa.Table, aggregation: str
) -> None:
    """Against sums over single sequences, equal responses counted each for itself."""
    generator = np.random.default_rng(0)
    twice = pa.concat_tables([responses, responses]).sort_by([("conversation_id", "ascending"), ("turn", "ascending")])
    rows, talks = twice.to_pylist(), from_table(conversations)
    by_id, said = {one.id: one for one in talks}, [(one, turn) for one in talks for turn in one.agent_turns]
    worth = {(row["conversation_id"], row["turn"], tuple(row["tokens"])): generator.random() for row in rows}
    sampled = np.array([worth[row["conversation_id"], row["turn"], tuple(row["tokens"])] for row in rows])
    logged = generator.standard_normal(len(said))
    update = PolicyUpdate(
        minibatch_conversations=1000,
        importance_cap=None,
        max_gradient_norm=None,
        epochs=1,
        kl=NO_KL,
        aggregation=aggregation,
    )
    spec = SingleTurnImprovement(update, logged=0.5)
    metrics = spec.run(learner.core, conversations, twice, scores_of(sampled, logged, 0.7))[1]

    states = [(row["conversation_id"], row["turn"]) for row in rows]
    means = {
        state: np.mean([q for q, other in zip(sampled, states, strict=True) if other == state]) for state in states
    }
    among = np.array([q - means[state] for q, state in zip(sampled, states, strict=True)])
    parts = [(by_id[row["conversation_id"]].history(row["turn"]), row["tokens"]) for row in rows]
    parts += [(one.history(turn), one.turns[turn].tokens) for one, turn in said]
    advantages = np.concatenate([among / among.std(), (logged - logged.mean()) / logged.std()]).clip(-BOUND, BOUND)
    weights = np.concatenate([[0.7 / states.count(state) for state in states], np.full(len(said), 0.5)])
    if aggregation == "turn":
        weights = weights / [len(tokens) for _, tokens in parts]
    total = sum(weight * len(tokens) for weight, (_, tokens) in zip(weights, parts, strict=True))
    model = LlamaForCausalLM.from_pretrained(policy_folder)
    for (history, tokens), advantage, weight in zip(parts, advantages, weights, strict=True):
        logits = model(torch.tensor([history + tokens])).logits[0, len(history) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        (-chosen.sum() * advantage * weight / total).backward()
    norm = torch.cat([value.grad.flatten() for value in model.parameters()]).norm()
    assert metrics["gradient_norm"] == pytest.approx(float(norm), rel=2e-3)


def test_scores_that_do_not_fit_are_refused(learner: Learner, conversations: pa.Table, responses: pa.Table) -> None:
    update, turns = PolicyUpdate(kl=NO_KL), np.zeros(turns_of(conversations))
    some = np.linspace(0, 1, responses.num_rows)
    with pytest.raises(DataError, match="as many finite scores"):
        SingleTurnImprovement(update).run(learner.core, conversations, responses, scores_of(some[:2], turns))
    with pytest.raises(DataError, match="as many advantages"):
        SingleTurnImprovement(update).run(learner.core, conversations, responses, scores_of(some, turns[:2]))


def test_what_q_is_not_sure_of_moves_nothing(learner: Learner, conversations: pa.Table, responses: pa.Table) -> None:
    before = [value.detach().clone() for value in learner.core.models.policy.parameters()]
    given = scores_of(np.linspace(0, 1, responses.num_rows), np.ones(turns_of(conversations)), confidence=0.0)
    numbers = SingleTurnImprovement(PolicyUpdate(kl=NO_KL), 0.0).run(learner.core, conversations, responses, given)[1]
    assert numbers["policy_steps"] == 0
    assert all(torch.equal(old, now) for old, now in zip(before, learner.core.models.policy.parameters(), strict=True))


def test_what_q_prefers_becomes_likelier(
    policy_folder: Path, settings: LearnerSettings, conversations: pa.Table, sampled: Callable[..., pa.Table]
) -> None:
    learner, means, none = Learner(settings, policy_folder, seed=3), [], np.zeros(turns_of(conversations))
    update = PolicyUpdate(learning_rate=3e-3, minibatch_conversations=3, kl=NO_KL, kl_limit=0.2, epochs=1)
    for number in range(8):
        responses = sampled(learner, conversations, samples=6, seed=number)
        wanted = np.array([float(7 in tokens) for tokens in responses["tokens"].to_pylist()])
        means.append(wanted.mean())
        SingleTurnImprovement(update, 0.0).run(learner.core, conversations, responses, scores_of(wanted, none))
    assert means[-1] > means[0] + 0.2, means
