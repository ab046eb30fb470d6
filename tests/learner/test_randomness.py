"""torch goes on with the random numbers it would have drawn."""

from pathlib import Path

import pytest
import torch

from mtrl_ray.learner.compute import randomness


def test_the_cpu_goes_on(tmp_path: Path) -> None:
    randomness.keep(tmp_path)
    drawn = torch.rand(3)
    randomness.restore(tmp_path)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize(("count", "taken"), [(2, True), (1, False)])
def test_gpus_go_on_where_there_are_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, taken: bool
) -> None:
    states, given = [torch.full((16,), value, dtype=torch.uint8) for value in (1, 2)], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", given.extend)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    randomness.keep(tmp_path)
    randomness.restore(tmp_path)
    assert [state.tolist() for state in given] == ([state.tolist() for state in states] if taken else [])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_goes_on(tmp_path: Path) -> None:
    randomness.keep(tmp_path)
    drawn = torch.rand(3, device="cuda")
    randomness.restore(tmp_path)
    assert torch.equal(torch.rand(3, device="cuda"), drawn)
