"""What the audit of a run's journal finds."""

import shutil

from mtrl_ray.chaos.audit import Audit, audit
from mtrl_ray.dialogue.conversation import from_table, to_table
from mtrl_ray.monitoring.recorder import Recorder
from mtrl_ray.replay.journal import Journal
from mtrl_ray.rollout.lease import make_leases
from mtrl_ray.run.folder import resumed_settings
from mtrl_ray.run.recipes import load
from tests.replay.making import conversation


def test_a_conversation_too_many_in_one_iteration_makes_up_for_none_that_another_lost(tmp_path):
    settings = load("sales", [f"run.folder={tmp_path}", "algorithm.contexts=2"])
    leases = [
        make_leases(settings.run.seed, "train", 0, range(2)),
        make_leases(settings.run.seed, "train", 1, range(2, 4)),
    ]
    held = [lease.id for pair in leases for lease in pair][1:]
    Journal(settings.run_folder / "journal").append(to_table([conversation(name) for name in held]))
    with Recorder(settings.run_folder, "run", tensorboard=False) as recorder:
        recorder.record(1, {"collect/failures": 0, "collect/score_n": 1})
        recorder.record(2, {"collect/failures": 1, "collect/score_n": 2})
    assert audit(settings) == Audit(4, 1, 0, 0)


def test_what_is_lost_doubled_or_empty_is_found(finished_run, tmp_path):
    run = tmp_path / "finished"
    shutil.copytree(finished_run, run)
    settings = resumed_settings(run)
    assert audit(settings) == Audit(24, 0, 0, 0)
    journal = Journal(run / "journal")
    held = journal.read()
    [first] = [path for path in (run / "journal").glob("*.parquet") if "-000000-000000-" in path.name]
    first.unlink()
    kept = held.filter([name.startswith("train-000000") for name in held["id"].to_pylist()])
    journal.append(kept.slice(2))  # two are lost
    journal.append(kept.slice(5, 3))  # three are there twice
    assert audit(settings) == Audit(24, 2, 3, 0)
    [silent] = from_table(kept.slice(1, 1))
    for turn in silent.agent_turns:
        silent.turns[turn].tokens, silent.turns[turn].logprobs, silent.turns[turn].versions = [], [], []
    journal.append(to_table([silent]))
    assert audit(settings) == Audit(24, 1, 3, 1)
