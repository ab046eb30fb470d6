"""Which tests `make check` leaves out, by what their files name."""

from pathlib import Path

import pytest

from tests.conftest import starts_something


@pytest.mark.parametrize(
    ("line", "starts"),
    [
        ("import ray", True),
        ("    from vllm import LLM", True),
        ("with connected(settings):", True),
        ("make_tiny(folder, model, environment, view)", True),
        ("import mtrl_ray", False),
        ("from mtrl_ray.rollout.vllm_engine import at_all", False),
        ("from mtrl_ray.errors import EngineError", False),
    ],
)
def test_make_check_leaves_out_what_starts_ray_vllm_or_training(tmp_path: Path, line: str, starts: bool) -> None:
    (tmp_path / "test_it.py").write_text(f'"""A test."""\n\n{line}\n')
    assert starts_something(tmp_path / "test_it.py") is starts
