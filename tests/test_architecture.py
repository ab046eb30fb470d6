"""The path of a conversation in docs/architecture.md: its files exist, and it does not get longer."""

import re

from tests.support.path import ROOT, counted, named, section

MOST_FILES = 20


def test_the_files_from_a_lease_to_a_gradient_exist_and_do_not_grow_in_number():
    files = counted()
    assert len(files) == len(set(files)) == len(re.findall(r"^\d+\. ", section(), flags=re.MULTILINE))
    assert [name for name in files if not (ROOT / name).is_file()] == []
    assert files[0] == "mtrl_ray/rollout/lease.py" and "mtrl_ray/learner/compute/core.py" in files
    assert set(files) < named()
    assert len(files) <= MOST_FILES
