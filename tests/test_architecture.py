"""The path of a conversation in docs/architecture.md: its files exist, and it does not get longer."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_FILES = 24


def test_the_files_from_a_lease_to_a_gradient_exist_and_do_not_grow_in_number():
    text = (ROOT / "docs/architecture.md").read_text()
    section = text.split("## One conversation, from a lease to a gradient")[1].split("\n## ")[0]
    files = re.findall(r"^\d+\. `([\w/]+\.py)`", section, flags=re.MULTILINE)
    assert len(files) == len(set(files)) == len(re.findall(r"^\d+\. ", section, flags=re.MULTILINE))
    assert [name for name in files if not (ROOT / name).is_file()] == []
    assert {"mtrl_ray/rollout/lease.py", "mtrl_ray/learner/compute/core.py"} <= set(files)
    assert len(files) <= MOST_FILES
