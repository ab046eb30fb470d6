"""What only importing the libraries can tell: each probe is a Python process of its own.

1. A library that was built for another machine ends its process (illegal instruction) instead of raising: the doctor
   must survive that and name the library.
2. A probe prints one JSON line before each step and one after it; a step without its second line is the one that failed
   to return.
"""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_SECONDS = 180.0

_PRELUDE = """
import json, sys
def step(name, body):
    print("probe " + json.dumps({"step": name}), flush=True)
    try:
        result = {"facts": body() or {}}
    except BaseException as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    print("probe " + json.dumps({"step": name, **result}), flush=True)
"""

_LIBRARIES = """
def torch():
    import torch
    cuda = torch.cuda.is_available()
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
    return {"cuda": torch.version.cuda, "gpus": [{"name": d.name, "bytes": d.total_memory} for d in devices]}
def transformers():
    from transformers import LlamaForCausalLM
def peft():
    from peft import LoraConfig
def ray():
    import ray
def pyarrow():
    import pyarrow.parquet
for body in (torch, transformers, peft, ray, pyarrow):
    step(body.__name__, body)
"""

_VLLM = """
def vllm():
    import torch
    from vllm.platforms import current_platform
    current_platform.import_kernels()
    return {"device": current_platform.device_type, "kernels": hasattr(torch.ops._C, "rms_norm")}
step("vllm", vllm)
"""


@dataclass(frozen=True)
class Probe:
    """How importing one library went: its facts, or the sentence of what went wrong."""

    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def probe_libraries(with_vllm: bool) -> dict[str, Probe]:
    """Import torch, transformers, peft, ray, pyarrow and, if asked for, vLLM with its compiled kernels."""
    scripts = {"libraries": _LIBRARIES} | ({"vllm": _VLLM} if with_vllm else {})
    with ThreadPoolExecutor(max_workers=len(scripts)) as pool:
        results = list(pool.map(run_steps, scripts.values()))
    return {name: probe for result in results for name, probe in result.items()}


def run_steps(script: str, timeout: float = TIMEOUT_SECONDS) -> dict[str, Probe]:
    """Run `step(name, body)` lines in a fresh interpreter and return what became of each step that was begun."""
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", _PRELUDE + script]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
        output, ending = done.stdout, _ending(done.returncode)
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else (error.stdout or "")
        ending = f"did not return within {timeout:g} s"
    return _steps(output, ending)


def _steps(output: str, ending: str) -> dict[str, Probe]:
    probes: dict[str, Probe] = {}
    for line in output.splitlines():
        if line.startswith("probe "):
            said = json.loads(line.removeprefix("probe "))
            finished = "facts" in said or "error" in said
            probes[said["step"]] = Probe(said.get("facts", {}), said.get("error", "") if finished else ending)
    return probes


def _ending(returncode: int) -> str:
    if returncode < 0:
        return f"ended its process with {signal.Signals(-returncode).name}"
    return f"ended its process with exit code {returncode}"
