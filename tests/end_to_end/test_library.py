"""The program under "As a library" in the README runs as printed, but for settings that make its run one of seconds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, environment

SETTINGS = '{"run.name": "guessing", "run.iterations": 2}'
CONTINUED = """
from mtrl_envs.registry import GIVEN
done = mtrl_ray.train(resume=again, overrides={"run.iterations": 3}, environment=Guessing)
print("rows", done.metrics.num_rows, "conversations", len(done.conversations()), len(done.conversations(range(0, 1))))
GIVEN.clear()
try:
    mtrl_ray.train(resume=again)
except mtrl_ray.ConfigurationError as error:
    print(error)
"""


@pytest.mark.timeout(600)
def test_the_program_in_the_readme_trains_on_a_class_of_its_own(tmp_path: Path, quick: list[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert SETTINGS in program
    listed = [*(text for text in quick if not text.startswith("environment.name")), "run.name=guessing"]
    (tmp_path / "program.py").write_text(program.replace(SETTINGS, repr(listed)) + CONTINUED)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Estimate(mean=")
    assert "system Find the number." in done.stdout
    assert "user Guess my number, from 1 to 9." in done.stdout
    assert "rows 3 conversations 36 12" in done.stdout
    assert "'given:Guessing' was a class of the program that started the run" in done.stdout
    written = (tmp_path / "runs" / "guessing" / "config.yaml").read_text()
    assert "name: given:Guessing" in written
