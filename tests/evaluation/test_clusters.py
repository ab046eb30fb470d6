"""Held-out scores and well-formed turns: what one source has is one cluster."""

import numpy as np
import pytest

from mtrl_envs.registry import make
from mtrl_ray.dialogue.conversation import Conversation, Role, StopReason, Turn, sources, to_table
from mtrl_ray.evaluation.holdout import mean_score, well_formed
from mtrl_ray.monitoring.examples import compare
from mtrl_ray.statistics.estimates import mean_interval


def talk(index: int, score: float, source: str | None = None, texts: tuple[str, ...] = (), split: str = "test"):
    turns = [Turn(Role.AGENT, text) for text in texts]
    return Conversation(
        f"{split}-{index}", "sales", split, f"{split}-{index}", turns, score, StopReason.OUTCOME, source=source
    )


SCORES = np.random.default_rng(0).random(6)
HELD = [talk(index, SCORES[index % 6], f"record-{index % 6}") for index in range(60)]


def test_the_score_of_repeated_contexts_has_the_interval_of_their_sources():
    found, once = mean_score(to_table(HELD)), mean_interval(SCORES)
    assert (found.n, found.clusters) == (60, 6)
    assert (found.mean, found.low, found.high) == pytest.approx((once.mean, once.low, once.high), abs=1e-6)
    old = to_table(HELD).drop_columns("source")
    assert mean_score(old).clusters == 60, "a table of version 0.1 knows of contexts alone"


def test_samples_of_one_context_are_one_cluster_and_splits_have_their_own():
    again = [talk(0, 0.1), talk(0, 0.9), talk(0, 0.2, split="train")]
    assert len(set(sources(to_table(again)))) == 2
    assert mean_score(to_table(again[:2])).clusters == 1


def test_the_turns_of_one_conversation_are_one_cluster():
    said = [talk(0, 1.0, texts=("What is it for?",) * 30), talk(1, 1.0, texts=("<|im_start|>",) * 30)]
    found = well_formed(make("sales"), to_table(said))
    assert (found.mean, found.n, found.clusters) == (0.5, 60, 2)
    assert (found.low, found.high) == (0.0, 1.0), "two conversations say nothing"


def test_a_reports_difference_is_over_sources():
    after = [talk(index, 0.5 + one.score / 2, one.source) for index, one in enumerate(HELD)]
    difference = compare(HELD, after).difference
    assert difference is not None and (difference.n, difference.clusters) == (60, 6)
