"""`mtrl theory`: what it prints, writes and answers."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mtrl_ray import cli
from mtrl_ray.tabular import checks, implicit_prm


@pytest.fixture
def theory(monkeypatch: pytest.MonkeyPatch, whole: checks.Suite):
    """Run `mtrl theory` on the games of `whole`, whose runs other tests have made already; return the exit code."""

    def suite(games: int, seed: int) -> checks.Suite:
        return whole if (games, seed) == (whole.games, whole.seed) else checks.suite.Suite(games, seed)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(checks, "Suite", suite)
        monkeypatch.setattr(sys, "argv", ["mtrl", "theory", "--seed", str(whole.seed), *arguments])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        return ending.value.code or 0

    return run


def test_it_writes_what_it_found(theory, tmp_path: Path, capsys):
    out, path = tmp_path / "page", tmp_path / "theory.json"
    assert theory("--games", "20", "--out", str(out), "--json", str(path)) == 0
    found = json.loads(path.read_text())["checks"]
    assert [set(check) for check in found] == [{"name", "holds", "error", "bound", "games"}] * len(checks.CHECKS)
    assert all(check["holds"] and check["error"] <= check["bound"] for check in found)
    page, figure = (out / "theory.md").read_text(), (out / "theory.svg").read_text()
    assert f"mtrl theory --games 20 --seed 11 --out {out}" in page and "(theory.svg)" in page
    assert all(f"| {check['name']} |" in page for check in found)
    rows = [line.replace(r"\|", "") for line in page.splitlines() if line.startswith("| ")]
    assert {row.count("|") for row in rows} == {7}
    assert "MTPO-τ: divergence from the equilibrium" in figure
    assert f"{len(found)} hold, 0 fail" in capsys.readouterr().out


def test_it_ends_with_1_where_a_statement_fails(theory, monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setattr(implicit_prm, "turn_weights", lambda scores, eta: 1.0 / (1.0 + np.exp(-scores / eta)))
    assert theory("--games", "20", "--out", str(tmp_path), "--json", str(tmp_path / "found.json")) == 1
    found = json.loads((tmp_path / "found.json").read_text())["checks"]
    assert [check["name"] for check in found if not check["holds"]] == ["turn_rewards_sum"]
    assert f"{len(found) - 1} hold, 1 fail" in capsys.readouterr().out
    assert (tmp_path / "theory.md").read_text().count("| NO |") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--games", "3"), "--games 3: 5 kinds of preference in 4 shapes need at least 20 games"),
        (("--seed", "-2"), "--seed -2: give a number that is not negative"),
    ],
)
def test_numbers_that_cannot_work_are_one_sentence(theory, tmp_path: Path, capsys, arguments, said):
    assert theory("--out", str(tmp_path), *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_found_first(theory, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    assert theory("--out", str(tmp_path / "file" / "below")) == 2
    assert "Not a directory; give a folder that can be written" in capsys.readouterr().err
