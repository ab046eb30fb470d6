"""The outcome as token rewards, and every estimator of `policy_gradient` against its paper's formula and verl's code."""

import numpy as np
import pyarrow as pa
import pytest

from mtrl_ray.algorithms.policy_gradient import PolicyGradientSettings
from mtrl_ray.dialogue.conversation import Conversation, Finish, Role, StopReason, Turn, from_table, to_table
from mtrl_ray.errors import ConfigurationError, DataError
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.advantages import Advantages
from mtrl_ray.learner.methods.outcome import Outcome
from mtrl_ray.learner.methods.turn_advantages import TurnAdvantages
from mtrl_ray.learner.rows.batch import Batch
from mtrl_ray.learner.rows.tables import Dialogues
from mtrl_ray.learner.sections import Fit
from tests.learner.examples import agent_turn, grouped

SCORES = {"x": (0.0, 0.5, 1.0), "y": (0.25, 0.25), "z": (0.75,)}
"""By context; the last context has one conversation."""
LENGTHS = {"x": ([2, 3], [1], [4, 1, 2]), "y": ([3], [2, 2]), "z": ([1, 1],)}
"""Tokens of each agent turn."""
LONG = {"x1": [0], "y1": [0, 1], "z0": []}
"""Conversations with agent turns that ended at the token limit; the window cuts `z0` off."""


def talk(context: str, sample: int) -> Conversation:
    turns = [Turn(Role.SYSTEM, "s", tokens=[7])]
    for number, length in enumerate(LENGTHS[context][sample]):
        said = agent_turn([10 + number] * length)
        said.finish = Finish.LENGTH if number in LONG.get(f"{context}{sample}", []) else Finish.STOP
        turns += [Turn(Role.USER, "u", tokens=[8, 9]), said]
    stop = StopReason.TOKEN_LIMIT if context == "z" else StopReason.OUTCOME
    name, score = f"{context}{sample}", SCORES[context][sample]
    return Conversation(
        name, "test", "train", context, [*turns, Turn(Role.USER, "bye", [3])], score, stop, sample=sample
    )


@pytest.fixture(scope="module")
def talks() -> pa.Table:
    return to_table(talk(context, sample) for context in SCORES for sample in range(len(SCORES[context])))


def advantages_of(learner: Learner, talks: pa.Table, rewards: np.ndarray, **settings) -> list[np.ndarray]:
    """Of each conversation, [agent tokens]."""
    found, _ = Advantages(**settings).run(learner.core, talks, rewards)
    return np.split(found, np.cumsum([int(one.mask.sum()) for one in from_table(talks)])[:-1])


def test_the_outcome_is_with_the_last_token_and_an_overlong_answer_pays_with_its_own(learner, talks):
    rewards, numbers = Outcome(penalty=0.1).run(learner.core, talks)
    expected = {
        "x0": [[0, 0], [0, 0, 0.0]],
        "x1": [[0.5 - 0.1]],
        "x2": [[0, 0, 0, 0], [0], [0, 1.0]],
        "y0": [[0, 0, 0.25]],
        "y1": [[0, -0.1], [0, 0.25 - 0.1]],
        "z0": [[0], [0.75 - 0.1]],
    }
    np.testing.assert_allclose(rewards, [token for turns in expected.values() for turn in turns for token in turn])
    assert numbers["outcome"] == pytest.approx((2.75 - 0.4) / 6) and numbers["overlong"] == pytest.approx(4 / 11)
    free, _ = Outcome().run(learner.core, talks)
    assert free.sum() == pytest.approx(2.75)


def test_rows_and_conversations_agree_on_what_is_overlong(talks):
    found = Dialogues.read(talks).overlong
    expected = [turn in one.overlong for one in from_table(talks) for turn in one.agent_turns]
    assert found.tolist() == expected and sum(expected) == 4


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_group_baselines_are_those_of_verl(learner, talks, estimator):
    """verl: n/(n-1) (x - mean), and (x - mean) / (std + 1e-6) with n - 1. Alone there is no baseline, and no advantage."""
    rewards, _ = Outcome().run(learner.core, talks)
    for one, found in zip(
        from_table(talks), advantages_of(learner, talks, rewards, estimator=estimator, whiten=False), strict=True
    ):
        group = np.array(SCORES[one.context_id])
        if len(group) == 1:
            expected = 0.0
        elif estimator == "rloo":
            expected = len(group) / (len(group) - 1) * (one.score - group.mean())
        else:
            expected = (one.score - group.mean()) / (group.std(ddof=1) + 1e-6)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_reinforce_plus_plus_is_verls(learner, talks):
    """verl: returns of tokens, whitened over all tokens of the batch, variance with n - 1."""
    rewards, _ = Outcome(penalty=0.1).run(learner.core, talks)
    returns = np.concatenate(
        [
            np.cumsum(own[::-1])[::-1]
            for own in np.split(rewards, np.cumsum([int(one.mask.sum()) for one in from_table(talks)])[:-1])
        ]
    )
    plain = np.concatenate(advantages_of(learner, talks, rewards, estimator="reinforce_plus_plus", whiten=False))
    np.testing.assert_allclose(plain, returns - returns.mean(), atol=1e-6)
    whitened = np.concatenate(advantages_of(learner, talks, rewards, estimator="reinforce_plus_plus"))
    np.testing.assert_allclose(whitened, (returns - returns.mean()) / np.sqrt(returns.var(ddof=1) + 1e-8), atol=1e-5)
    assert not np.allclose(whitened[-2:], 0), "the only one on its context is compared with the batch"


def test_turn_ppo_is_gae_over_turns(learner: Learner):
    """Against a loop, and against `TurnAdvantages` without a KL."""
    table, lam = grouped(seed=4, contexts=5, samples=2), 0.9
    rewards, _ = Outcome().run(learner.core, table)
    spec = Advantages(estimator="turn_ppo", gae_lambda=lam, whiten=False, critic=Fit(epochs=4, learning_rate=1e-2))
    spec.run(learner.core, table, rewards)
    batch = Batch.read(table)
    values = learner.core.evaluate("turn_critic", batch.state_rows)["values"]
    assert values.std() > 0.01
    learner.core.models.copy("value", "turn_critic")
    found, numbers = spec.run(learner.core, table, rewards)
    expected, start = [], 0
    for one in from_table(table):
        turns = len(one.agent_turns)
        own, after, following = values[start : start + turns], 0.0, 0.0
        turn_advantages = []
        for k in reversed(range(turns)):
            delta = (one.score if k == turns - 1 else 0.0) + following - own[k]
            after = delta + lam * after
            following = own[k]
            turn_advantages.insert(0, after)
        for place, advantage in zip(one.agent_turns, turn_advantages, strict=True):
            expected += [advantage] * len(one.turns[place].tokens)
        start += turns
    np.testing.assert_allclose(found, expected, atol=1e-5)
    other, _ = TurnAdvantages(gae_lambda=lam, whiten=False).run(learner.core, table)
    np.testing.assert_allclose(found, other, atol=1e-5)
    assert numbers["explained_variance"] > 0 and numbers["critic_loss"] > 0


def test_impossible_settings_are_one_sentence():
    with pytest.raises(ValueError, match=r"advantages.estimator is grpo and samples is 1"):
        PolicyGradientSettings(samples=1, advantages={"estimator": "grpo"})
    for estimator in ("ppo", "turn_ppo", "reinforce_plus_plus"):
        assert PolicyGradientSettings(samples=1, advantages={"estimator": estimator}).samples == 1
    for baseline in ("pooled", "own_turn"):
        with pytest.raises(ValueError, match=f"baseline is {baseline}, which is about rewards of turns"):
            PolicyGradientSettings(advantages={"baseline": baseline})
    with pytest.raises(ConfigurationError, match=r"the penalty of overlong answers is -0.1; it has to be at least 0"):
        Outcome(-0.1)


def test_turn_rewards_without_scores_are_refused(learner):
    table = grouped(seed=4, contexts=2, samples=2)
    for one in (unscored := from_table(table)):
        one.score = 0.0
    with pytest.raises(DataError, match="the environment rewards turns, but all 4 conversations have score 0"):
        Outcome().run(learner.core, to_table(unscored))
