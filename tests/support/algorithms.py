"""Settings of a run with an algorithm of a test's choice."""

import json
from pathlib import Path
from typing import Any

from mtrl_ray.run.folder import prepare
from mtrl_ray.run.recipes import load
from mtrl_ray.settings.tree import Settings


def settings_with(tree: dict[str, Any], quick: list[str], folder: Path, name: str, *overrides: str) -> Settings:
    """The recipe `sales` with `tree` in place of its algorithm, its run folder prepared.

    quick: the fixture of that name; folder, name: of the run.
    """
    mine = [f"run.folder={folder}", f"run.name={name}", f"algorithm={json.dumps(tree)}", *overrides]
    settings = load("sales", [*quick, *mine])
    prepare(settings, fresh=False, command="mtrl train")
    return settings
