"""`mtrl fit-preferences` on scripted conversations about cars: the oracle's pairs, people's pairs, and what is kept."""

import json
import sys
from pathlib import Path

import pytest
import torch

from mtrl_envs.measure import rollout
from mtrl_envs.registry import make
from mtrl_ray import cli
from mtrl_ray.dialogue.conversation import to_table
from mtrl_ray.models.blank import blank_model
from mtrl_ray.models.value import ValueModel
from mtrl_ray.replay.journal import Journal
from mtrl_ray.settings.tree import ModelSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of an expert's and a random agent's conversations with the same forty buyers, pairs of them, a model."""
    place, cars = tmp_path_factory.mktemp("preferences"), make("car_dealer")
    talks = [
        rollout(cars, cars.context("train", index), name, 0) for index in range(40) for name in ("expert", "random")
    ]
    Journal(place / "journal").append(to_table(talks))
    pairs = [
        {"first": talks[k].id, "second": talks[k + 1].id, "preference": "first", "judge": "Ann"}
        for k in range(0, 80, 2)
    ]
    (place / "pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs))
    blank_model(place / "model", ModelSettings(layers=1), talks)
    return place


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, folder: Path):
    """Run the command on the journal: exit code, figures, what it said."""

    def run(*arguments: str, held_out: bool = True) -> tuple[int, dict, str]:
        result = folder / "result.json"
        result.unlink(missing_ok=True)
        drawn = ["--held-out", "0.3"] if held_out else []
        given = [*drawn, "--epochs", "2", "--minibatch-pairs", "8", "--json", str(result), *arguments]
        monkeypatch.setattr(sys, "argv", ["mtrl", "fit-preferences", str(folder / "journal"), *given])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        said = capsys.readouterr()
        return ending.value.code or 0, json.loads(result.read_text()) if result.exists() else {}, said.out + said.err

    return run


def test_models_of_the_oracles_pairs_are_judged_and_kept(fit, folder):
    kept = folder / "models"
    code, figures, said = fit("--model", str(folder / "model"), "--save", str(kept))
    assert code == 0, said
    assert figures["pairs"]["train"] + figures["pairs"]["held_out"] == 40 and figures["pairs"]["left_out"] == 0
    for kind in ("preference", "reward"):
        found = figures[kind]["held_out"]
        assert found["pairs"] == figures["pairs"]["held_out"] > 5
        assert 0 <= found["accuracy"]["low"] <= found["accuracy"]["mean"] <= 1
        assert 0 < found["oracle"] <= found["cross_entropy"] < 1 and 0 <= found["calibration"]["error"] < 0.5
        assert float(ValueModel.load(kept / kind, torch.device("cpu")).head.weight.detach().abs().max()) > 0
    assert said.count("held_out: accuracy") == 2


def test_pairs_of_another_log_judge_the_models(fit, folder):
    cars = make("car_dealer")
    talks = [
        rollout(cars, cars.context("train", index), name, 1) for index in range(38, 52) for name in ("expert", "random")
    ]
    Journal(folder / "other").append(to_table(talks))
    test = ["--test", str(folder / "other"), "--model", str(folder / "model")]
    code, figures, said = fit(*test, held_out=False)
    assert code == 0, said
    assert (figures["pairs"]["train"], figures["pairs"]["held_out"]) == (40, 12)
    assert figures["preference"]["held_out"]["accuracy"]["clusters"] <= 12
    assert "the pairs of 2 conversations are left out of the test" in said
    code, _, said = fit(*test)
    assert code == 2 and "--test names what is judged" in said


def test_models_of_peoples_pairs_learn_what_people_said(fit, folder):
    code, figures, said = fit("--pairs", str(folder / "pairs.jsonl"), "--model", str(folder / "model"), "--epochs", "6")
    assert code == 0, said
    assert figures["reward"]["held_out"]["oracle"] == 0.0, "they were sure"
    assert figures["reward"]["held_out"]["accuracy"]["mean"] > 0.8


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--save", "models"], "--save needs --model FOLDER"),
        (["--held-out", "0"], "40 are left to fit and 0 to judge"),
        (["--options", "{preference_noise: 3}"], "preference_noise is 3"),
        (["--options", "[1]"], "it has to be a mapping"),
        (["--epochs", "0"], "pairs.epochs is 0"),
        (["--pairs", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_cannot_work_is_one_sentence(fit, arguments, sentence):
    code, _, said = fit(*arguments)
    assert code == 2 and sentence in said and said.count("\n") == 1
