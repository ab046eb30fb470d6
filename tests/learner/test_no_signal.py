"""If all outcomes are alike nothing is to be learned, and the policy stays where it is, whatever words cost."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mtrl_ray.dialogue.conversation import from_table, to_table
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.methods.advantages import Advantages
from mtrl_ray.learner.methods.conversations import ConversationImprovement
from mtrl_ray.learner.methods.improvement import Improvement
from mtrl_ray.learner.methods.turn_advantages import TurnAdvantages
from mtrl_ray.learner.methods.turn_rewards import TurnRewards
from mtrl_ray.learner.rows.batch import Batch
from mtrl_ray.settings.tree import LearnerSettings
from tests.learner.examples import answer, grouped

ROUNDS = 6


def conversations(alike: bool) -> pa.Table:
    """Twelve conversations whose turns have one to five words; their scores vary, or are all one half."""
    talks, generator = from_table(grouped(seed=8, contexts=4, samples=3)), np.random.default_rng(0)
    for talked in talks:
        talked.score = 0.5 if alike else talked.score
        for turn in talked.agent_turns:
            talked.turns[turn].text = "word " * int(generator.integers(1, 6))
    return to_table(talks)


def moved(learner: Learner, improve) -> float:
    """Mean |change of log π| of what was said, after some improvements."""
    rows = Batch.read(conversations(True)).token_rows
    before = learner.core.evaluate("policy", rows)["logprobs"]
    for _ in range(ROUNDS):
        improve()
    return float(np.abs(learner.core.evaluate("policy", rows)["logprobs"] - before).mean())


@pytest.mark.parametrize("estimator", ["rloo", "grpo", "ppo"])
def test_the_price_of_words_alone_moves_nothing(policy_folder: Path, settings: LearnerSettings, estimator: str) -> None:
    def after(alike: bool) -> float:
        learner, talks = Learner(settings, policy_folder, seed=3), conversations(alike)

        def improve() -> None:
            rewards, _ = TurnRewards(scheme="outcome").run(learner.core, talks)
            advantages, made = Advantages(estimator=estimator).run(learner.core, talks, rewards)
            ConversationImprovement(learning_rate=5e-3).run(learner.core, talks, advantages, made)

        return moved(learner, improve)

    assert after(True) < 0.1 * after(False)


@pytest.mark.parametrize("estimator", ["ppo", "grpo", "reinforce"])
def test_responses_that_score_alike_move_nothing(
    policy_folder: Path, settings: LearnerSettings, estimator: str
) -> None:
    talks = conversations(True)
    responses = answer(talks, seed=2, samples=4)
    noise = np.random.default_rng(0).standard_normal(responses.num_rows).astype(np.float32)

    def after(deviation: float) -> float:
        learner = Learner(settings, policy_folder, seed=3)
        scores = 0.5 + deviation * noise
        spec = Improvement(estimator=estimator, learning_rate=5e-3, kl={"coefficient": 0.0})
        return moved(learner, lambda: spec.run(learner.core, talks, responses, scores))

    assert after(1e-4) < 0.1 * after(0.2)


@pytest.mark.parametrize("value", ["turn", "token", "hybrid"])
def test_even_preferences_move_nothing(policy_folder: Path, settings: LearnerSettings, value: str) -> None:
    talks = conversations(True)

    def after(deviation: float) -> float:
        learner = Learner(settings, policy_folder, seed=3)
        terminal = (0.5 + deviation * np.random.default_rng(0).standard_normal(12)).astype(np.float32)

        def improve() -> None:
            advantages, made = TurnAdvantages(value=value).run(learner.core, talks, terminal)
            ConversationImprovement(learning_rate=5e-3).run(learner.core, talks, advantages, made)

        return moved(learner, improve)

    assert after(1e-5) < 0.1 * after(0.2)
