"""A run whose actors are killed recovers and ends as if nothing had happened."""

import json
import os
import re
import resource
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray

from mtrl_ray.errors import DataError, EngineError
from mtrl_ray.learner.group import LearnerGroup
from mtrl_ray.monitoring.names import repeatable
from mtrl_ray.monitoring.recorder import FILE, read_metrics
from mtrl_ray.monitoring.view import Silent
from mtrl_ray.replay.journal import Journal
from mtrl_ray.run import trainer
from mtrl_ray.run.checkpoint import MANIFEST, STATE, listed
from mtrl_ray.run.folder import prepare, resumed_settings
from mtrl_ray.run.recipes import load
from mtrl_ray.run.trainer import Trainer
from mtrl_ray.system.actors import NOTES
from tests.support.processes import wait_until

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Saboteur(Silent):
    """Does something to a run while responses are sampled, once in each of the iterations named."""

    def __init__(self, plan: dict[int, Callable[[Trainer], object]]) -> None:
        self.notes: list[str] = []
        self._plan = plan

    def watch(self, made: Trainer) -> None:
        self._trainer = made

    def part(self, name: str, doing: str) -> None:
        if name == "rollout" and doing.startswith("rolling out"):
            self.learners = [pid_of(actor) for actor in self._trainer.system.learner._actors]  # idle now, soon at work
        if name == "rollout" and "responses" in doing:
            self._plan.pop(self._trainer.system.iteration, lambda _: None)(self._trainer)

    def note(self, text: str) -> None:
        self.notes.append(text)


def run(quick: list[str], folder: Path, saboteur: Saboteur, *overrides: str) -> Path:
    settings = load("sales", [*quick, f"run.folder={folder}", "run.name=repaired", *overrides])
    prepare(settings, fresh=False, command="mtrl train")
    trainer.run(settings, saboteur, watch=saboteur.watch)
    return settings.run_folder


def pid_of(actor: object) -> int:
    return ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))


def kill_buffer(of: Trainer) -> None:
    os.kill(pid_of(of.system.buffer), signal.SIGKILL)


def metrics(run: Path) -> list[dict[str, float]]:
    return [{key: row[key] for key in row if repeatable(key)} for row in read_metrics(run)]


def learned(run: Path) -> dict[str, str]:
    """Checksums of everything in the last checkpoint but the account of what the run went through, and its times."""
    manifest = json.loads((listed(run / "checkpoints")[-1] / MANIFEST).read_text())
    return {name: entry["sha256"] for name, entry in manifest.items() if name not in (STATE, FILE)}


def test_a_run_that_loses_its_buffer_and_its_learner_ends_as_the_undisturbed_one(finished_run, quick, tmp_path):
    saboteur = Saboteur({0: kill_buffer, 1: lambda of: os.kill(saboteur.learners[0], signal.SIGKILL)})
    disturbed = run(quick, tmp_path, saboteur)
    said = "\n".join(saboteur.notes)
    assert "recovery 1 of at most 20 in a row" in said and "made again: learner" in said
    assert "continuing after iteration 1" in said and "recovery 2" not in said, "Ray starts the buffer again, as it was"
    assert metrics(disturbed) == metrics(finished_run) and learned(disturbed) == learned(finished_run)
    rows = read_metrics(disturbed)
    assert "the replay buffer was lost and started again" in said and rows[0]["replay/restarts"] == 1
    assert [row["faults/recoveries"] for row in rows] == [0, 1]
    assert [row["faults/reused"] for row in rows] == [0, 12], "what the journal had was not held again"
    assert not (disturbed / NOTES).exists()
    journal, before = Journal(disturbed / "journal"), Journal(finished_run / "journal")
    assert journal.position.rows == 24 and journal.read().sort_by("id").equals(before.read().sort_by("id"))


def test_spares_take_the_place_of_a_lost_worker_and_a_lost_learner(finished_run, quick, tmp_path):
    spares: list[list[int]] = []

    def spare_of(of: Trainer) -> list[int]:
        spare = of.system._actors._spare
        spare.wait()
        spares.append(spare.processes)
        return spare.processes

    def lose_worker_and_spare_learner(of: Trainer) -> None:
        wait_until(lambda: of.system.fleet.pool.poll() or len(of.system.fleet.pool.ready()) == 2, 60)
        [worker] = of.system.fleet.pool.active()
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: of.system.fleet.pool.poll() or worker.unhealthy, 60)
        assert of.system.fleet.pool.active() not in ([worker], []), "the spare is there at once"
        os.kill(spare_of(of)[0], signal.SIGKILL)

    def lose_learner(of: Trainer) -> None:
        spare_of(of)
        os.kill(saboteur.learners[0], signal.SIGKILL)

    saboteur = Saboteur({0: lose_worker_and_spare_learner, 1: lose_learner})
    disturbed = run(quick, tmp_path, saboteur, "rollout.spares=1", "learner.spare=true")
    assert metrics(disturbed) == metrics(finished_run) and learned(disturbed) == learned(finished_run)
    assert spares[0] != spares[1] == saboteur._trainer.system.learner.processes, "a lost spare was replaced"
    said = "\n".join(saboteur.notes)
    assert "made again: learner" in said and "recovery 2" not in said
    assert "was lost while it had nothing to do" in said and read_metrics(disturbed)[-1]["faults/worker_deaths"] == 1


def test_a_run_that_loses_its_weight_store_counts_on_what_was_lost_before(finished_run, quick, tmp_path):
    saboteur = Saboteur(
        {
            0: lambda of: os.kill(of.system.fleet.wait_ready()[0]["pid"], signal.SIGKILL),
            1: lambda of: os.kill(pid_of(of.system._actors.store), signal.SIGKILL),
        }
    )
    disturbed = run(quick, tmp_path, saboteur)
    said = "\n".join(saboteur.notes)
    assert "made again: weight store, rollout workers" in said
    assert metrics(disturbed) == metrics(finished_run) and learned(disturbed) == learned(finished_run)
    deaths = [row["faults/worker_deaths"] for row in read_metrics(disturbed)]
    assert deaths[0] == 1 and deaths[1] >= deaths[0], "another fleet counts on"


def test_a_run_that_loses_one_of_two_learners_ends_as_the_undisturbed_one(quick, tmp_path):
    two = ("learner.processes=2", "learner.cpus=0.5")
    calm = run(quick, tmp_path / "calm", Saboteur({}), *two)
    saboteur = Saboteur({1: lambda of: os.kill(saboteur.learners[1], signal.SIGKILL)})
    disturbed = run(quick, tmp_path / "disturbed", saboteur, *two)
    said = "\n".join(saboteur.notes)
    assert "made again: learner" in said and "continuing after iteration 1" in said
    assert metrics(disturbed) == metrics(calm) and learned(disturbed) == learned(calm)


def test_a_learner_that_stands_still_is_given_up_at_the_deadline(finished_run, quick, tmp_path, monkeypatch):
    monkeypatch.setattr("mtrl_ray.system.actors.ANSWER_SECONDS", 15.0)  # for a sign of life from it; a minute elsewhere
    stopped = []

    def stop_learner(_of: Trainer) -> None:
        stopped.append(psutil.Process(saboteur.learners[0]))
        stopped[0].suspend()

    saboteur = Saboteur({1: stop_learner})
    disturbed = run(quick, tmp_path, saboteur, "run.wait_seconds=15")
    said = [note for note in saboteur.notes if "recovery" in note]
    assert len(said) == 1 and said[0].startswith("waited 15 s for "), saboteur.notes
    assert not psutil.wait_procs(stopped, timeout=60)[1], "Ray kills a process that does not hear it after 5 s"
    assert metrics(disturbed) == metrics(finished_run) and learned(disturbed) == learned(finished_run)


def fill_disk(of: Trainer) -> None:
    """No file of the replay buffer may grow as large as one of the journal's."""
    pid = pid_of(of.system.buffer)
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    of.recovery._sleep = lambda seconds: resource.prlimit(pid, resource.RLIMIT_FSIZE, before) if seconds else None


def test_a_full_disk_stops_a_run_until_there_is_room(quick, tmp_path):
    saboteur = Saboteur({0: fill_disk})
    repaired = run(quick, tmp_path, saboteur)
    said = [note for note in saboteur.notes if "recovery" in note]
    assert len(said) == 2 and all(str(repaired / "journal") in note for note in said), said
    assert "recovery 2 of at most 20 in a row, in 1 s" in said[1]
    journal = Journal(repaired / "journal")
    assert len(journal.ids()) == journal.position.rows == 24 and not journal.problems


def test_a_learner_that_dies_while_a_run_is_resumed_is_made_again(finished_run, tmp_path, monkeypatch):
    resumed = tmp_path / "resumed"
    shutil.copytree(finished_run, resumed)
    load, killed = LearnerGroup.load, []

    def dying(group: LearnerGroup, folder: str) -> object:
        if not killed:
            killed.append(ray.kill(group._actors[0]))
        return load(group, folder)

    monkeypatch.setattr(LearnerGroup, "load", dying)
    saboteur = Saboteur({})
    trainer.run(resumed_settings(resumed, ["run.iterations=3"]), saboteur, resume=True, watch=saboteur.watch)
    said = "\n".join(saboteur.notes)
    assert killed and "recovery 1 of" in said and "made again: learner" in said
    assert [row["iteration"] for row in read_metrics(resumed)] == [1, 2, 3]
    assert metrics(resumed)[:2] == metrics(finished_run)


def test_a_setup_that_fails_for_good_leaves_nobody_behind(finished_run, tmp_path):
    resumed = tmp_path / "resumed"
    shutil.copytree(finished_run, resumed)
    shutil.rmtree(resumed / "journal")
    with pytest.raises(DataError, match=r"24 conversations that the journal .* does not have"):
        trainer.run(resumed_settings(resumed, ["rollout.workers={min: 1, max: 2}"]), Silent(), resume=True)
    assert not (resumed / "fleet.json").exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "fleet"]


def test_what_fails_again_and_again_ends_the_run_with_its_cause(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "RECOVERIES", 2)

    def no_learner(of: Trainer) -> None:
        os.kill(saboteur.learners[0], signal.SIGKILL)
        of.recovery._sleep = lambda seconds: None
        of.system._actors._new_learner = lambda: (_ for _ in ()).throw(EngineError("no node has room for a learner"))

    saboteur = Saboteur({0: no_learner})
    with pytest.raises(EngineError, match="no node has room for a learner; given up after 2 recoveries in a row"):
        run(quick, tmp_path, saboteur)


def test_users_that_do_not_answer_stop_a_run_until_they_do(quick, tmp_path):
    marker = tmp_path / "answering"

    class Waiting(Saboteur):
        def note(self, text: str) -> None:
            super().note(text)
            if "recovery 2 of" in text:
                marker.touch()

    saboteur = Waiting({})
    away = f"environment.options={{trouble: away, marker: {marker}}}"
    repaired = run(quick, tmp_path, saboteur, away, "rollout.retries=0")
    said = [note for note in saboteur.notes if "recovery" in note]
    assert len(said) == 2 and "recovery 2 of at most 20 in a row, in 1 s" in said[1]
    named = r"\d+ of 12 conversations .* because of the infrastructure; .* train-\S+: EngineError: the reader does not answer"
    assert all(re.search(named, note) for note in said), said
    journal, rows = Journal(repaired / "journal"), read_metrics(repaired)
    assert journal.position.rows == 24 and rows[0]["faults/reused"] > 0 and rows[0]["collect/conversations"] == 12


def test_data_that_is_wrong_too_often_stops_the_run_with_the_conversation(quick, tmp_path):
    saboteur = Saboteur({})
    troubled = ["environment.options={trouble: some}", "rollout.retries=1", "rollout.data_errors=0.1"]
    with pytest.raises(
        DataError, match=r"of 12 conversations failed 2 times each .*the first, train-\S+: DataError: the"
    ):
        run(quick, tmp_path, saboteur, *troubled)
    assert not any("recovery" in note for note in saboteur.notes)
