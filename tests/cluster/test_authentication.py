"""The token of clusters that are started here: made once, its owner's alone, and off only in so many words."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, environment

SWITCH_ON = """
import os
from mtrl_cluster.authentication import join, switch_on
from mtrl_ray.errors import ConfigurationError
try:
    {call}()
except ConfigurationError as error:
    print(error)
print(os.environ.get("RAY_AUTH_MODE"))
"""


def called(call: str, home: Path, **variables: str) -> list[str]:
    """What a process of its own prints."""
    given = {name: value for name, value in environment(HOME=str(home)).items() if not name.startswith("RAY_AUTH")}
    command = [sys.executable, "-c", SWITCH_ON.format(call=call)]
    done = subprocess.run(command, cwd=ROOT, env=given | variables, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_token_is_made_once_and_is_its_owners_alone(tmp_path: Path):
    assert called("switch_on", tmp_path) == ["token"]
    path = tmp_path / ".ray" / "auth_token"
    token = path.read_text()
    assert len(token) == 64 and stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert called("switch_on", tmp_path) == ["token"]
    assert path.read_text() == token and stat.S_IMODE(path.stat().st_mode) == 0o600


HURRY = """
import sys, time
from pathlib import Path
from mtrl_cluster import authentication
made = authentication.secrets.token_hex
def slowly(size):
    time.sleep(float(sys.argv[2]))  # the other one comes meanwhile
    return made(size)
authentication.secrets.token_hex = slowly
print("ready", flush=True)
while not Path(sys.argv[1]).exists():
    time.sleep(0.01)
authentication._keep_token()
print(authentication.token_file().read_text())
"""


@pytest.mark.parametrize("before", [None, ""], ids=["no file", "an empty one"])
def test_those_who_start_at_once_have_one_token(before: str | None, tmp_path: Path):
    path, go = tmp_path / ".ray" / "auth_token", tmp_path / "go"
    if before is not None:
        path.parent.mkdir()
        path.write_text(before)
    command, given = [sys.executable, "-c", HURRY, str(go)], environment(HOME=str(tmp_path))
    starting = [
        subprocess.Popen([*command, pause], cwd=ROOT, env=given, stdout=subprocess.PIPE, text=True)
        for pause in ("0.3", "1.5")
    ]
    assert [one.stdout.readline() for one in starting if one.stdout] == ["ready\n"] * 2
    go.touch()
    tokens = {done.communicate(timeout=120)[0].strip() for done in starting}
    assert tokens == {path.read_text()} and len(path.read_text()) == 64


@pytest.mark.parametrize(
    ("variables", "printed"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, ["disabled"]),
        ({"RAY_AUTH_MODE": "of"}, ["RAY_AUTH_MODE is 'of'; leave it out, or set it to 'token' or 'disabled'", "of"]),
        ({"RAY_AUTH_TOKEN": "0" * 64}, ["token"]),
    ],
)
def test_what_the_environment_says_counts_and_no_file_is_made(variables, printed, tmp_path: Path):
    assert called("switch_on", tmp_path, **variables) == printed
    assert not (tmp_path / ".ray").exists()


def test_a_cluster_that_is_joined_is_sent_the_token_that_is_there(tmp_path: Path):
    assert called("join", tmp_path) == ["None"]
    assert called("join", tmp_path, RAY_AUTH_TOKEN="0" * 64) == ["token"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written_is_one_sentence(tmp_path: Path):
    tmp_path.chmod(0o500)
    assert "a token for Ray cannot be kept in" in called("switch_on", tmp_path)[0]
