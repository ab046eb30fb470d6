"""When training ends."""

import json
from pathlib import Path

import pytest

from mtrl_ray.run.ending import CONVERSATIONS, SCORE, Recent, Target


def iteration(score: float, conversations: int = 32) -> dict[str, float]:
    return {SCORE: score, CONVERSATIONS: conversations}


def test_a_target_is_a_mean_over_the_newest_conversations() -> None:
    target = Target(0.8)
    for score in (0.9, 0.9, 0.9):
        target.add(iteration(score))
        assert not target.reached  # too few conversations
    target.add(iteration(0.4))
    assert not target.reached
    target.add({"seconds": 3.0})  # no conversations
    target.add(iteration(0.7))
    assert not target.reached
    target.add(iteration(1.2))
    assert target.reached
    assert target.said() == "training ends: the score of the last 128 conversations is 0.800, the target 0.800"


def test_iterations_count_by_their_conversations() -> None:
    recent = Recent()
    recent.add(iteration(0.2, 96))
    assert recent.mean is None
    recent.add(iteration(0.8, 48))
    assert recent.mean == pytest.approx(0.4) and recent.conversations == 144
    recent.add(iteration(1.0, 256))  # enough by itself
    assert recent.mean == 1.0
    recent.add(iteration(0.5, 64))  # together with the one before
    assert recent.mean == pytest.approx(0.9)


def test_without_a_target_training_goes_on() -> None:
    assert not Target(None, [iteration(1.0)] * 9).reached


def test_the_target_of_a_run_is_a_share_of_its_gap(tmp_path: Path) -> None:
    summary = {"start": {"mean": 0.5}, "expert": {"mean": 0.9}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"iteration": number} | iteration(0.86)) + "\n" for number in range(1, 5))
    )
    assert Target.of(0.89, tmp_path, print).reached
    assert not Target.of(0.91, tmp_path, print).reached
    assert not Target.of(None, tmp_path, print).reached


def test_without_an_expert_there_is_no_target_and_a_note_says_so(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"start": {"mean": 0.5}}))
    notes: list[str] = []
    assert not Target.of(0.9, tmp_path, notes.append).reached
    assert len(notes) == 1 and "no scripted agent 'expert'" in notes[0]
