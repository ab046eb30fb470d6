"""`mtrl theory`: its output, its files and its exit code."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mtrl_ray import cli
from mtrl_ray.tabular import checks, implicit_prm


@pytest.fixture
def theory(monkeypatch: pytest.MonkeyPatch, small_suite: checks.Suite):
    """Run `mtrl theory` on the games of `small_suite`, to share its runs with other tests; return the exit code."""

    def suite(games: int, seed: int) -> checks.Suite:
        return (
            small_suite if (games, seed) == (small_suite.games, small_suite.seed) else checks.suite.Suite(games, seed)
        )

    def run(*arguments: str) -> int:
        monkeypatch.setattr(checks, "Suite", suite)
        monkeypatch.setattr(sys, "argv", ["mtrl", "theory", "--seed", str(small_suite.seed), *arguments])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        return ending.value.code or 0

    return run


def test_it_writes_page_figure_and_json(theory, tmp_path: Path, capsys):
    out, path = tmp_path / "page", tmp_path / "theory.json"
    assert theory("--games", "20", "--out", str(out), "--json", str(path)) == 0
    results = json.loads(path.read_text())["checks"]
    assert [set(check) for check in results] == [{"name", "holds", "error", "bound", "games"}] * len(checks.CHECKS)
    assert all(check["holds"] and check["error"] <= check["bound"] for check in results)
    page, figure = (out / "theory.md").read_text(), (out / "theory.svg").read_text()
    assert f"mtrl theory --games 20 --seed 11 --out {out}" in page and "(theory.svg)" in page
    assert all(f"| {check['name']} |" in page for check in results)
    rows = [line.replace(r"\|", "") for line in page.splitlines() if line.startswith("| ")]
    assert {row.count("|") for row in rows} == {7}
    assert "MTPO-τ: divergence from the equilibrium" in figure
    assert f"{len(results)} hold, 0 fail" in capsys.readouterr().out


def test_the_exit_code_is_1_if_a_statement_fails(theory, monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setattr(implicit_prm, "turn_weights", lambda scores, eta: 1.0 / (1.0 + np.exp(-scores / eta)))
    assert theory("--games", "20", "--out", str(tmp_path), "--json", str(tmp_path / "found.json")) == 1
    results = json.loads((tmp_path / "found.json").read_text())["checks"]
    assert [check["name"] for check in results if not check["holds"]] == ["turn_rewards_sum"]
    assert f"{len(results) - 1} hold, 1 fail" in capsys.readouterr().out
    assert (tmp_path / "theory.md").read_text().count("| NO |") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--games", "3"), "--games 3: 5 kinds of preference in 4 shapes need at least 20 games"),
        (("--seed", "-2"), "--seed -2: give a number that is not negative"),
    ],
)
def test_invalid_numbers_give_one_sentence(theory, tmp_path: Path, capsys, arguments, message):
    assert theory("--out", str(tmp_path), *arguments) == 2
    assert message in capsys.readouterr().err


def test_an_unwritable_folder_is_reported_before_the_checks_run(theory, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    assert theory("--out", str(tmp_path / "file" / "below")) == 2
    assert "Not a directory; give a folder that can be written" in capsys.readouterr().err
