"""The whole loop on a real Ray: what a run leaves, that it repeats, resumes, and says what went wrong."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from mtrl_ray.algorithms.iterative_ppo import IterativePPO
from mtrl_ray.algorithms.registry import make_algorithm
from mtrl_ray.dialogue.conversation import Conversation, from_table, validate
from mtrl_ray.errors import ConfigurationError, DataError, EngineError
from mtrl_ray.monitoring import names
from mtrl_ray.monitoring.recorder import read_metrics
from mtrl_ray.monitoring.view import Silent
from mtrl_ray.replay.journal import Journal
from mtrl_ray.rollout.results import Result
from mtrl_ray.run import checkpoint, trainer
from mtrl_ray.run.folder import prepare, resumed_settings, write_settings
from mtrl_ray.run.recipes import load
from mtrl_ray.settings.tree import Settings
from tests.support.letters import Letters


def settings_of(quick: list[str], folder: Path, name: str, *overrides: str) -> Settings:
    return load("sales", [*quick, f"run.folder={folder}", f"run.name={name}", *overrides])


def begin(settings: Settings) -> Settings:
    prepare(settings, fresh=False, command="mtrl train")
    return settings


def journaled(run: Path) -> dict[str, Conversation]:
    table = Journal(run / "journal").read()
    return {done.id: done for done in from_table(table)}


def repeatable(run: Path) -> list[dict[str, float]]:
    """The metrics that the seed decides."""
    return [{key: row[key] for key in row if names.repeatable(key)} for row in read_metrics(run)]


def policy(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def differ(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_everything_that_explains_it(finished_run: Path):
    assert yaml.safe_load((finished_run / "config.yaml").read_text())["run"]["name"] == "finished"
    assert (finished_run / "command.txt").read_text() == "mtrl train sales run.name=finished\n"
    summary = json.loads((finished_run / "summary.json").read_text())
    spoken = {name: summary.pop(f"{name}_well_formed") for name in ("start", "end")}
    assert summary.keys() == {"start", "start_greedy", "expert", "greedy", "random", "end", "end_greedy"}
    for estimate in summary.values():
        assert estimate["low"] <= estimate["mean"] <= estimate["high"] and estimate["n"] == 8
    assert summary["expert"]["mean"] == 1.0 and summary["greedy"]["mean"] == 0.5
    for name in ("start", "end"):
        held = from_table(pq.read_table(finished_run / "evaluation" / f"{name}.parquet"))
        assert [done.context_id for done in held] == [f"test-{index}" for index in range(8)]
        assert sum(done.score for done in held) / 8 == pytest.approx(summary[name]["mean"])
        said = [done.turns[place].text for done in held for place in done.agent_turns]
        assert spoken[name]["n"] == len(said)
        assert spoken[name]["mean"] == pytest.approx(sum(map(Letters().well_formed, said)) / len(said))
    report = (finished_run / "report.html").read_text()
    assert "mtrl train sales run.name=finished" in report and "test-0" in report
    assert list((finished_run / "tensorboard").iterdir())


def test_the_journal_has_every_training_conversation_once(finished_run: Path):
    held = journaled(finished_run)
    assert len(held) == Journal(finished_run / "journal").position.rows == 24
    for done in held.values():
        validate(done)
        assert done.split == "train" and done.iteration == int(done.context_id.split("-")[1]) // 12
        versions = {version for turn in done.agent_turns for version in done.turns[turn].versions}
        assert versions == {done.iteration}


def test_every_iteration_has_its_metrics(finished_run: Path):
    rows = read_metrics(finished_run)
    assert [row["iteration"] for row in rows] == [1, 2]
    for number, row in enumerate(rows, start=1):
        assert row["collect/conversations"] == row["collect/score_n"] == 12
        assert row["weights/version"] == number and row["replay/conversations"] == 12 * number
        assert row["collect/failures"] == row["faults/dropped"] == row["faults/overdue"] == row["faults/reused"] == 0
        assert row["improve/policy_steps"] > 0 and 0 < row["improve/entropy"] < 10
        assert row["collect/score_low"] < row["collect/score_mean"] < row["collect/score_high"]
        assert row["collect/seconds"] + row["respond/seconds"] < row["iteration/seconds"]
    for row in rows:
        assert 0 <= row["q/confidence"] <= 1 and row["q/calibration"] >= 0
        assert row["q/conversations"] == 12 * row["iteration"], "Q is fitted on the newest and the earlier ones"


def test_the_checkpoint_is_a_model_that_transformers_opens_and_that_has_learned(finished_run: Path, blank_sales: Path):
    found = checkpoint.listed(finished_run / "checkpoints")
    assert [path.name for path in found] == ["000001", "000002"]
    start, middle, end = policy(blank_sales), *(policy(path / "policy") for path in found)
    assert differ(start, middle) and differ(middle, end)
    assert len(AutoTokenizer.from_pretrained(found[-1] / "policy")) == start["model.embed_tokens.weight"].shape[0]


def test_the_same_seed_gives_the_same_run_and_the_home_folder_stays_as_it_is(
    finished_run: Path, quick: list[str], tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settings = begin(settings_of(quick, tmp_path, "again"))
    summary = trainer.run(settings, Silent())
    assert not (tmp_path / "home").exists(), "a read-only home folder is enough"
    assert journaled(settings.run_folder) == journaled(finished_run)
    assert repeatable(settings.run_folder) == repeatable(finished_run)
    assert summary == json.loads((finished_run / "summary.json").read_text())


def test_a_finished_run_goes_on_with_more_iterations(finished_run: Path, quick: list[str], tmp_path: Path):
    run = tmp_path / "moved"
    shutil.copytree(finished_run, run)
    before = json.loads((run / "summary.json").read_text())
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().splitlines(keepends=True)[0])
    settings = resumed_settings(run, ["run.iterations=3"])
    write_settings(settings)
    assert settings.run_folder == run
    summary = trainer.run(settings, Silent(), resume=True)
    assert repeatable(run)[:2] == repeatable(finished_run), "a line that was lost came back"
    assert [row["iteration"] for row in read_metrics(run)] == [1, 2, 3]
    held, earlier = journaled(run), journaled(finished_run)
    assert len(held) == 36 and {name: held[name] for name in earlier} == earlier
    assert read_metrics(run)[2]["weights/version"] == 3 and read_metrics(run)[2]["replay/conversations"] == 36
    assert [path.name for path in checkpoint.listed(run / "checkpoints")] == ["000002", "000003"]
    assert {name: summary[name] for name in ("start", "expert")} == {name: before[name] for name in ("start", "expert")}
    assert yaml.safe_load((run / "config.yaml").read_text())["run"]["iterations"] == 3


def test_a_checkpoint_that_the_learner_cannot_read_is_passed_over(finished_run: Path, tmp_path: Path, caplog):
    run = tmp_path / "passed-over"
    shutil.copytree(finished_run, run)
    newest = run / "checkpoints" / "000002"
    (newest / "learner.json").write_text("{}")
    (newest / "manifest.json").unlink()
    checkpoint.write_into(newest, json.loads((newest / "state.json").read_text()), lambda _: None)
    checkpoint.verify(newest)
    trainer.run(resumed_settings(run), Silent(), resume=True)
    assert (
        "learner's state" in caplog.text and "trying the one before" in caplog.text and "Traceback" not in caplog.text
    )
    assert repeatable(run) == repeatable(finished_run) and journaled(run) == journaled(finished_run)
    assert [path.name for path in checkpoint.listed(run / "checkpoints")] == ["000001", "000002"]


@pytest.fixture(scope="module")
def stepping(ray_cluster: None, quick: list[str], tmp_path_factory: pytest.TempPathFactory):
    """A trainer whose iterations the tests make themselves."""
    settings = begin(settings_of(quick, tmp_path_factory.mktemp("stepping"), "stepping"))
    made = trainer.Trainer(settings)
    yield made
    made.stop()


VARIANTS = [
    {"critic": "linear", "window": 2},
    {"critic": "linear", "responses": 1, "rounds": 2},
    {"improvement": {"estimator": "grpo"}},
    {"improvement": {"estimator": "reinforce"}, "responses": 1},
    {"q": {"target": "td_lambda"}, "window": 2},
    {"q": {"target": "sarsa"}, "rounds": 2},
    {"q": {"discount": 0.0}, "improvement": {"kl": {"reference": "current"}}},
]


@pytest.mark.parametrize(
    "variant", VARIANTS, ids=["linear", "what was said", "grpo", "reinforce", "td_lambda", "sarsa", "single turn"]
)
def test_every_variant_of_the_algorithm_learns(stepping, variant):
    tree = (
        stepping.settings.algorithm | {"critic": "network", "improvement": {"minibatch_conversations": 1000}} | variant
    )
    stepping.algorithm = make_algorithm(tree)
    version, before = stepping.system.version, ray.get(stepping.system.learner.weights(900)).buffer
    metrics = stepping.step()
    assert metrics["collect/conversations"] == 12 and metrics["improve/policy_steps"] > 0
    rounds = variant.get("rounds", 1)
    assert metrics["weights/version"] == version + rounds
    assert (ray.get(stepping.system.learner.weights(901)).buffer != before).any()


def test_going_back_to_a_checkpoint_repeats_the_iteration(stepping):
    stepping.algorithm = make_algorithm(stepping.settings.algorithm)
    stepping.step()
    stepping.keep_checkpoint()
    place = stepping.system.iteration, stepping.system.version
    first = stepping.step()
    stepping.recover()
    assert (stepping.system.iteration, stepping.system.version) == place
    again = stepping.step()
    assert again["faults/reused"] == 12, "the journal has that iteration already"
    same = ("collect/score_mean", "q/calibration", "q/value_r", "improve/policy_loss", "improve/entropy")
    assert {key: again[key] for key in same} == pytest.approx({key: first[key] for key in same}, rel=1e-4)


def orphaned(table: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
    """`[ref]` of a copy of a table whose owner has died."""

    class Owner:
        def own(self, content):
            return [ray.put(content)]

    owner = ray.remote(Owner).options(num_cpus=0).remote()
    copy = ray.get(owner.own.remote(*table))
    ray.kill(owner)
    return copy


def test_conversations_lost_on_their_way_are_held_again(stepping, monkeypatch):
    system, rollout, lost = stepping.system, stepping.system.fleet.rollout, []

    def losing(leases, version, known):
        for result in rollout(leases, version, known):
            if not lost:
                lost.extend(from_table(ray.get(result.table[0])))
                result = Result(orphaned(result.table), result.report)
            yield result

    monkeypatch.setattr(system.fleet, "rollout", losing)
    logged = system.rollout(12, 1)
    assert lost and {done.id for done in lost} <= set(logged.ids) and len(logged.ids) == 12
    held = {done.id: done for done in from_table(ray.get(system.buffer.take.remote(logged.ids)))}
    assert [held[done.id] for done in lost] == lost
    system.take_metrics()


class Careless(IterativePPO):
    """Fits Q on no conversations at all."""

    def iterate(self, system) -> None:
        system.rollout(12, 1)
        system.learn(self.settings.q, system.buffer.take.remote([]))


def test_an_error_of_the_learner_surfaces_as_its_cause(stepping):
    stepping.algorithm = Careless(stepping.algorithm.settings)
    with pytest.raises(DataError) as raised, trainer.explained(stepping.folder):
        stepping.step()
    assert type(raised.value) is DataError and "\n" not in str(raised.value)


def test_a_learner_that_dies_ends_the_run_with_a_sentence(stepping):
    stepping.algorithm = make_algorithm(stepping.settings.algorithm)
    ray.kill(stepping.system.learner._actors[0])
    with pytest.raises(EngineError, match=r"actor.*mtrl train --resume") as raised, trainer.explained(stepping.folder):
        stepping.step()
    assert "\n" not in str(raised.value)


def test_a_run_of_the_same_name_is_refused_unless_it_is_to_be_replaced(finished_run: Path, quick, tmp_path):
    run = tmp_path / "finished"
    shutil.copytree(finished_run, run)
    settings = settings_of(quick, tmp_path, "finished")
    with pytest.raises(ConfigurationError, match=r"exists; resume it .*--resume.*--fresh") as raised:
        prepare(settings, fresh=False, command="mtrl")
    assert "\n" not in str(raised.value)
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigurationError, match="exists"):
        prepare(settings, fresh=False, command="mtrl")
    prepare(settings, fresh=True, command="mtrl train sales --fresh")
    assert sorted(path.name for path in run.iterdir()) == ["command.txt", "config.yaml"]


@pytest.mark.timeout(200)
def test_with_real_vllm(ray_cluster, quick, tmp_path):
    settings = begin(settings_of(quick, tmp_path, "vllm", "rollout.engine=vllm", "environment.name=sales"))
    summary = trainer.run(settings, Silent())
    assert len(journaled(settings.run_folder)) == 24 and summary["end"]["n"] == 8
    rows = read_metrics(settings.run_folder)
    assert [row["weights/version"] for row in rows] == [1, 2]
    assert rows[0]["improve/importance_weight"] == pytest.approx(1.0, abs=1e-4)


def test_a_run_killed_before_its_first_checkpoint_begins_again_with_the_conversations_it_has(
    finished_run: Path, tmp_path: Path
):
    run = tmp_path / "early"
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "checkpoints")
    trainer.run(resumed_settings(run), Silent(), resume=True)
    rows, before = repeatable(run), repeatable(finished_run)
    assert [row["faults/reused"] for row in read_metrics(run)] == [12, 12]
    learned = [key for key in before[0] if key.startswith(("q/", "improve/", "collect/score"))]
    assert [{key: row[key] for key in learned} for row in rows] == [
        {key: row[key] for key in learned} for row in before
    ]
    assert journaled(run) == journaled(finished_run)
