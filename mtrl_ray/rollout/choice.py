"""The engines by name: which one the settings choose, what it imports, how it is made.

An engine is one class in a module of its own and a line in `ENGINES`; the engines do not import this module.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.processes.preloading import LEARNER, fork_options
from mtrl_ray.rollout.engine import Engine
from mtrl_ray.settings.tree import ModelSettings, RolloutSettings


@dataclass(frozen=True)
class EngineEntry:
    """`module` and `name` of its class; `preload`: packages that a worker's process should have imported (`preloading`)."""

    module: str
    name: str
    preload: tuple[str, ...]


ENGINES = {
    "huggingface": EngineEntry("mtrl_ray.rollout.huggingface_engine", "HuggingFaceEngine", LEARNER),
    "vllm": EngineEntry(
        "mtrl_ray.rollout.vllm_engine",
        "VllmEngine",
        (*LEARNER, "vllm.engine.arg_utils", "vllm.v1.worker.cpu_model_runner"),
    ),
}


def engine_name(wanted: str) -> str:
    """The key in `ENGINES` for a `rollout.engine` setting. Raises ConfigurationError if vLLM is wanted and not installed."""
    installed = importlib.util.find_spec("vllm") is not None
    if wanted == "vllm" and not installed:
        raise ConfigurationError(
            "rollout.engine is 'vllm', but vllm is not installed; install the extra mtrl-ray[cpu] or mtrl-ray[gpu], "
            "or use rollout.engine=huggingface"
        )
    if wanted == "auto":
        return "vllm" if installed else "huggingface"
    return wanted


def make_engine(path: str, stop_ids: tuple[int, ...], rollout: RolloutSettings, model: ModelSettings) -> Engine:
    """The engine that the settings choose; version 0 of its weights are those of a Hugging Face folder or hub name."""
    entry = ENGINES[engine_name(rollout.engine)]
    make: Callable[..., Engine] = getattr(importlib.import_module(entry.module), entry.name)
    return make(path, stop_ids, rollout, model)


def worker_options(settings: RolloutSettings) -> dict[str, Any]:
    """Ray's options for a rollout worker, beside its resources."""
    return fork_options(settings.gpus, ENGINES[engine_name(settings.engine)].preload)
