"""How many positions a model has: the longest context that it can read."""

import json
from pathlib import Path
from typing import Any

from mtrl_ray.errors import ConfigurationError
from mtrl_ray.settings.tree import ModelSettings

KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
"""Of a configuration; models whose positions are relative have none of them."""


def positions(path: str) -> int | None:
    """The positions of the model in a folder, or of that name on the hub; None if it is bound to none."""
    config = Path(path) / "config.json"
    if config.is_file():
        tree: dict[str, Any] = json.loads(config.read_text())
    elif Path(path).exists():
        return None
    else:
        from transformers import AutoConfig

        tree = AutoConfig.from_pretrained(path).to_dict()
    return _positions(tree.get("text_config") or tree)


def check_context_length(model: ModelSettings, path: str) -> None:
    """Raises ConfigurationError if the model cannot read as many tokens as `model.context_length`."""
    most = positions(path)
    if most is not None and model.context_length > most:
        raise ConfigurationError(
            f"model.context_length is {model.context_length}, but the model {path!r} has {most} positions; "
            f"use at most {most}"
        )


def _positions(tree: dict[str, Any]) -> int | None:
    """As vLLM derives them: a rotary scaling that the model was made for extends them."""
    given = [tree[key] for key in KEYS if isinstance(tree.get(key), int)]
    if not given:
        return None
    scaling = tree.get("rope_parameters") or tree.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in ("default", "su", "longrope", "llama3"):
        return int(min(given))
    original = scaling.get("original_max_position_embeddings") if kind == "yarn" else None
    return int((original or min(given)) * scaling.get("factor", 1.0))
