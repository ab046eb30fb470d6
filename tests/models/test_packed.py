import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtrl_ray.errors import CheckpointError
from mtrl_ray.weights.packed import ALIGNMENT, PackedWeights, pack, unpack

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@given(st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), max_size=6))
def test_what_is_packed_is_unpacked(kinds: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
    state = {str(number): (torch.randn(shape) * 9).to(dtype) for number, (shape, dtype) in enumerate(kinds)}
    packed = pack(state, version=4)
    found = dict(unpack(packed))
    assert packed.version == 4
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert all(offset % ALIGNMENT == 0 for offset in packed.offsets)


def test_tied_weights_are_packed_once_and_views_are_not_taken_for_ties() -> None:
    weight = torch.randn(4, 4)
    packed = pack({"embed": weight, "head": weight, "part": weight[:2], "turned": weight.T})
    assert packed.names == ("embed", "part", "turned")
    assert torch.equal(dict(unpack(packed))["turned"], weight.T)


def test_floating_point_tensors_are_converted() -> None:
    packed = pack({"a": torch.tensor([1.5, -2.0]), "n": torch.tensor([7])}, dtype=torch.bfloat16)
    assert packed.dtypes == ("bfloat16", "int64")
    assert dict(unpack(packed))["a"].tolist() == [1.5, -2.0]


def test_unpacking_copies_nothing() -> None:
    packed = pack({"a": torch.zeros(3)})
    packed.buffer[:4] = np.frombuffer(np.float32(2.5).tobytes(), dtype=np.uint8)
    assert dict(unpack(packed))["a"].tolist() == [2.5, 0.0, 0.0]
    packed.buffer.flags.writeable = False
    assert dict(unpack(packed))["a"].tolist() == [2.5, 0.0, 0.0]


def test_a_buffer_that_is_too_short_is_refused() -> None:
    whole = pack({"a": torch.zeros(8), "b": torch.zeros(100)}, version=3)
    torn = PackedWeights(3, whole.names, whole.shapes, whole.dtypes, whole.offsets, whole.buffer[:200])
    with pytest.raises(CheckpointError, match="version 3 end at byte 200; 'b' needs 464"):
        dict(unpack(torn))
