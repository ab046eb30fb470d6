"""The commands on a finished run and on logs: what they print, what they write, and the sentences of their errors."""

import io
import json
import os
import random
import re
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from mtrl_ray import cli
from mtrl_ray.dialogue.conversation import from_table
from mtrl_ray.replay.journal import Journal
from tests.support.processes import ROOT, mtrl

CASINO = "casino_train.json"
CASINO_SOURCE = "the CaSiNo corpus is at github.com/kushalchawla/CaSiNo; name a folder that has it in MTRL_DATA"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Run `mtrl ARGUMENTS` in this process: exit code, standard output, standard error."""

    def run(*arguments: str, said: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mtrl", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ending:
            cli.main()
        captured = capsys.readouterr()
        return ending.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    shutil.copytree(finished_run, tmp_path / "finished")
    return tmp_path / "finished"


def test_evaluate_finds_what_the_run_found_and_writes_it(run_copy: Path, tmp_path: Path):
    address = ray.get_runtime_context().gcs_address
    done = mtrl("evaluate", str(run_copy), "--address", address, "--json", str(tmp_path / "deep" / "result.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "deep" / "result.json").read_text())
    summary = json.loads((run_copy / "summary.json").read_text())
    assert result == {"policy": summary["end"], **{name: summary[name] for name in ("expert", "greedy", "random")}}
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["policy", "expert", "greedy", "random"]
    kept, end = (
        from_table(pq.read_table(run_copy / "evaluation" / f"{name}.parquet")) for name in ("test-newest", "end")
    )
    assert [[turn.text for turn in done.turns] for done in kept] == [[turn.text for turn in done.turns] for done in end]


def test_chat_shows_conversations_with_simulated_users(here, run_copy: Path):
    code, said, _ = here("chat", str(run_copy), "--watch", "2", "--context", "3")
    assert code == 0 and said.count("Go on.") == 2 and said.count("score ") == 2
    assert "context 3" in said and "context 4" in said
    assert here("chat", str(run_copy), "--watch", "2", "--context", "3")[1] == said, "the same context, the same talk"
    assert here("chat", str(run_copy), "--watch", "2", "--context", "3", "--checkpoint", "1")[1] != said


def test_chat_with_a_person(here, run_copy: Path):
    code, said, _ = here("chat", str(run_copy), said="hello\nand then?\n\n")
    lines = [line.split() for line in said.splitlines()]
    assert code == 0 and lines[0][:2] == ["system", "Write"]
    assert sum("agent" in line for line in lines) == 2 and lines[-1][-1] == "(user_left)"
    code, said, _ = here("chat", str(run_copy), said="one\ntwo\nthree\nfour\n")
    assert said.count("agent") == 3 and "(turn_limit)" in said
    code, said, _ = here("chat", str(run_copy), said="")
    assert code == 0 and "agent" not in said and "(user_left)" in said


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """120 support dialogues in which one word of the agent decides whether the customer is content, and a torn one."""
    draw = random.Random(5)
    lines = []
    for number in range(120):
        kind = draw.random() < 0.5
        answer = f"{'certainly' if kind else 'never'}, {draw.choice(['we see', 'it goes', 'that is all'])}"
        messages = [
            {"role": "user", "content": draw.choice(["my lamp broke", "the box is empty"])},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "bye"},
        ]
        lines.append(json.dumps({"id": f"t{number}", "messages": messages, "score": float(kind)}))
    path = tmp_path / "support.jsonl"
    path.write_text("\n".join([*lines, '{"id": "torn", "mess']) + "\n")
    return path


def test_a_log_is_imported_and_q_learns_from_it(here, log: Path, tmp_path: Path):
    journal, report = str(tmp_path / "journal"), tmp_path / "report.json"
    code, said, _ = here("import", str(log), journal, "--json", str(report))
    counts = json.loads(report.read_text())
    assert code == 0 and (counts["records"], counts["added"], counts["quarantined"]) == (121, 120, 1)
    assert "120 conversations added" in said and "quarantined: 1 x" in said and counts["quarantine"] in said
    assert here("import", str(log), journal)[1].startswith("121 records: 0 conversations added, 120 known already")

    result = tmp_path / "q.json"
    options = ("--context-length", "128", "--epochs", "6", "--held-out", "0.2")
    code, said, _ = here("fit-q", journal, *options, "--json", str(result))
    figures = json.loads(result.read_text())
    assert code == 0 and figures["conversations"]["train"] + figures["conversations"]["held_out"] == 120
    assert figures["held_out"]["r"]["mean"] > 0.9 and figures["held_out"]["explained_variance"] > 0.4
    assert figures["held_out"]["by_turn"]["mean"] > 0.9 and figures["conversations"]["left_out"] == 0
    assert said.count("held_out: r ") == 2 and "20% of the contexts, drawn by seed 0" in said.splitlines()[0]
    assert figures["held_out"]["r"]["clusters"] == figures["conversations"]["held_out"], "a dialogue is a cluster"

    code, _, said = here("fit-q", journal, "--context-length", "64", "--held-out", "0")
    assert code == 2 and "120 are left to fit and 0 to judge" in said
    code, _, said = here("fit-q", journal, "--test", journal, "--held-out", "0.1")
    assert code == 2 and "--test names what is judged and --held-out draws it" in said
    code, _, said = here("fit-q", str(tmp_path / "nothing"))
    assert code == 2 and "holds no conversations" in said and said.count("\n") == 1


def test_an_import_that_quarantines_too_much_fails_and_says_why(here, tmp_path: Path):
    def lines(bad: int) -> str:
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
        records = [{"id": f"t{number}", "messages": messages, "score": 1.0} for number in range(20)]
        return "\n".join(json.dumps({**one, "score": None} if n < bad else one) for n, one in enumerate(records))

    log, journal = tmp_path / "log.jsonl", str(tmp_path / "journal")
    log.write_text(lines(bad=3))
    code, _, said = here("import", str(log), journal)
    assert code == 1 and said.startswith(
        "mtrl: 3 of 20 conversations were quarantined, more than --max-quarantined 0.1"
    )
    assert "most often (3 x): the path 'score' (score.path) finds nothing; for example" in said
    assert (
        'log.jsonl line 1: the path \'score\' (score.path) finds nothing: {"id": "t0"' in said and said.count("\n") == 1
    )
    assert here("import", str(log), journal, "--max-quarantined", "0.2")[0] == 0
    log.write_text(lines(bad=20))
    assert here("import", str(log), str(tmp_path / "none"), "--max-quarantined", "1")[0] == 1, "nothing is left"
    log.write_text("")
    code, _, said = here("import", str(log), str(tmp_path / "none"))
    assert code == 1 and "0 records were found" in said


def test_conversations_longer_than_the_context_are_left_out_and_counted(here, tmp_path: Path):
    def talk(number: int) -> str:
        text = "very long words " * 80 if number % 10 == 0 else "short words"
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}]
        return json.dumps({"id": f"t{number}", "messages": messages, "score": 1.0})

    (tmp_path / "log.jsonl").write_text("\n".join(map(talk, range(60))))
    here("import", str(tmp_path / "log.jsonl"), str(tmp_path / "journal"))
    result = tmp_path / "q.json"
    other = [json.dumps({**json.loads(talk(number)), "id": f"other{number}"}) for number in range(1, 9)]
    (tmp_path / "other.jsonl").write_text("\n".join([*other, talk(1)]))
    here("import", str(tmp_path / "other.jsonl"), str(tmp_path / "other"))
    command = ("fit-q", str(tmp_path / "journal"), "--test", str(tmp_path / "other"), "--context-length", "96")
    code, said, _ = here(*command, "--json", str(result))
    figures = json.loads(result.read_text())
    assert code == 0 and figures["conversations"] == {"train": 54, "held_out": 8, "left_out": 6, "cut": 0}
    lines = said.splitlines()
    assert lines[0] == "60 conversations to fit, 8 to judge (the test is a log of its own)"
    assert lines[1].startswith("1 conversations are left out of the test: they are on contexts of the training part")
    assert lines[2].startswith("6 of 68 conversations (8.8%) are left out: they are longer than --context-length 96; ")
    assert figures["held_out"]["r"]["mean"] is None and "r –" in said, "all outcomes are alike: r is not defined"


def test_q_on_real_negotiations(here, tmp_path: Path):
    folders = [Path(os.environ["MTRL_DATA"])] if "MTRL_DATA" in os.environ else [ROOT.parent / "shared" / "data"]
    found = next((folder / CASINO for folder in folders if (folder / CASINO).is_file()), None)
    if found is None:
        pytest.skip(CASINO_SOURCE)
    part, journal, result = tmp_path / "part.json", str(tmp_path / "journal"), tmp_path / "q.json"
    part.write_text(json.dumps(json.loads(found.read_text())[:60]))
    assert here("import", str(part), journal, "--mapping", "casino")[1].startswith(
        "60 records: 120 conversations added"
    )
    assert here("fit-q", journal, "--epochs", "2", "--json", str(result))[0] == 0
    figures = json.loads(result.read_text())
    conversations = figures["conversations"]
    assert figures["split"] == "the log's own split"
    assert conversations["held_out"] == Journal(journal).read()["split"].to_pylist().count("test")
    assert figures["held_out"]["r"]["clusters"] == conversations["held_out"] / 2, (
        "both views of a dialogue are one cluster"
    )
    assert conversations["train"] % 2 == conversations["held_out"] % 2 == 0, "both views of a dialogue on one side"
    assert sum(conversations.values()) == 120 and figures["held_out"]["turns"] > 4 * conversations["held_out"]
    assert 0.3 < figures["held_out"]["mean_return"] < 0.7 and -1 <= figures["held_out"]["r"]["mean"] <= 1


@pytest.mark.timeout(200)
def test_bench_rollout_compares_with_raw_generation(blank_sales: Path, tmp_path: Path):
    overrides = [f"model.path={blank_sales}", "rollout.concurrency=16", "rollout.response_tokens=8"]
    options = ["--conversations", "32", "--rounds", "1", "--json", str(tmp_path / "bench.json")]
    done = mtrl("bench", "rollout", *overrides, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 0 < json.loads((tmp_path / "bench.json").read_text())["ratio"] < 3 and "ratio" in done.stdout


MISTAKES = {
    "no recipe and no run": ("train", r"give a recipe \(mtrl train sales\), or a run"),
    "unknown recipe": ("train sails", r"there is no recipe 'sails'; give a YAML file or one of .*sales"),
    "misspelt key": ("train sales run.sed=1", r"run.sed is not a setting; did you mean 'seed'\?"),
    "model folder": ("train sales model.path=/no/such/model run.folder={tmp}", r"there is no such folder"),
    "run folder": ("train sales run.folder=/proc/nothing", r"run.folder: '/proc/nothing/sales' cannot be made"),
    "unknown run": ("train --resume {tmp}/none", r"'{tmp}/none' is not a run"),
    "fixed setting": ("train --resume {run} run.seed=9", r"run.seed is 0 in the run '{run}' and stays so"),
    "fixed section": ("train --resume {run} environment.name=sales", r"environment is .*letters.* and stays so"),
    "recipe and run": ("train sales --resume {run}", r"'sales' is not an override; write key.path=value"),
    "resume and fresh": ("train --resume {run} --fresh", r"--resume continues a run and --fresh replaces one"),
    "torn settings": ("train --resume {torn}", r"config.yaml' is torn"),
    "json is a folder": ("evaluate {run} --json {tmp}", r"--json {tmp}: .*give a file that can be written"),
    "evaluate nothing": ("evaluate {tmp}/none", r"'{tmp}/none' is not a run"),
    "no checkpoint yet": ("evaluate {early}", r"'{early}' has no checkpoint yet; .*--checkpoint start"),
    "unknown checkpoint": ("evaluate {run} --checkpoint 7", r"has no checkpoint 7; it has: 1, 2"),
    "no checkpoint's name": ("evaluate {run} --checkpoint best", r"--checkpoint best: give newest, start, or a number"),
    "broken checkpoint": ("evaluate {broken} --checkpoint 2", r"000002 lacks learner.json"),
    "chat nothing": ("chat {tmp}/none", r"'{tmp}/none' is not a run"),
    "chat without": ("chat {early}", r"has no checkpoint yet"),
    "submit unknown": ("submit sails", r"there is no recipe 'sails'"),
    "import nothing": ("import {tmp}/none.jsonl {tmp}/journal", r"none.jsonl"),
    "import mapping": ("import {tmp}/none.jsonl {tmp}/journal --mapping chess", r"chess"),
    "fit-q target": ("fit-q {run}/journal --target magic", r"q.target is 'magic'"),
}


@pytest.fixture(scope="module")
def places(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders in every state, by the name that `MISTAKES` gives them."""
    folder = tmp_path_factory.mktemp("places")
    shutil.copytree(finished_run, folder / "early", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(finished_run, folder / "broken")
    (folder / "broken" / "checkpoints" / "000002" / "learner.json").unlink()
    (folder / "torn").mkdir()
    (folder / "torn" / "config.yaml").write_text("run:\n  na")
    return {"tmp": folder, "run": finished_run, **{name: folder / name for name in ("early", "broken", "torn")}}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_changes_nothing(here, places: dict[str, Path], name: str):
    config = (places["run"] / "config.yaml").read_text()
    command, sentence = (text.format(**places) for text in MISTAKES[name])
    code, _, said = here(*command.split())
    assert code == 2 and said.startswith("mtrl: ") and said.count("\n") == 1, said
    assert re.search(sentence, said), said
    assert (places["run"] / "config.yaml").read_text() == config
    assert not (places["tmp"] / "sales").exists(), "nothing was begun"
