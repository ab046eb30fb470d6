from pathlib import Path

import pytest
import torch
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mtrl_ray.errors import CheckpointError
from mtrl_ray.models.inputs import ModelInputs
from mtrl_ray.models.value import HEAD_FILE, ValueModel

CPU = torch.device("cpu")


@pytest.fixture
def policy() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48)).eval()


def test_it_starts_as_a_copy_of_the_policys_decoder_that_says_zero(policy: PreTrainedModel) -> None:
    model = ValueModel.from_policy(policy)
    tokens, slots = torch.randint(0, 40, (2, 9)), torch.tensor([3, 17, 17])
    assert model(ModelInputs(tokens), slots)["values"].tolist() == [0.0, 0.0, 0.0]
    with torch.no_grad():
        model.head.weight.normal_()
        next(iter(model.decoder.parameters())).add_(1.0)
    states = model.decoder(tokens).last_hidden_state.flatten(0, 1)[slots]
    torch.testing.assert_close(model(ModelInputs(tokens), slots)["values"], states @ model.head.weight[0])
    other = ValueModel.from_policy(policy).decoder(tokens).last_hidden_state
    torch.testing.assert_close(other, policy.base_model(tokens).last_hidden_state)


def test_its_scale_follows_the_targets_and_what_it_says_stays(policy: PreTrainedModel) -> None:
    model = ValueModel.from_policy(policy)
    tokens, slots = torch.randint(0, 40, (1, 5)), torch.tensor([0, 2, 4])
    model.calibrate(3.0, 0.0)
    assert model.unit == 1.0, "targets that do not vary have no scale"
    model.calibrate(20.0, 4.0)
    assert model(ModelInputs(tokens), slots)["values"].tolist() == [20.0] * 3
    with torch.no_grad():
        model.head.bias.fill_(0.5)
        model.head.weight.normal_()
    before = model(ModelInputs(tokens), slots)["values"]
    for _ in range(60):
        model.calibrate(1.0, 0.5)
    torch.testing.assert_close(model(ModelInputs(tokens), slots)["values"], before)
    assert model.unit == pytest.approx(0.5, rel=0.02)
    assert float(model.head.offset) == pytest.approx(1.0, abs=0.01)


def test_saved_and_loaded_it_says_the_same(policy: PreTrainedModel, tmp_path: Path) -> None:
    model = ValueModel.from_policy(policy)
    model.calibrate(2.0, 3.0)
    with torch.no_grad():
        model.head.weight.normal_()
    model.save(tmp_path)
    tokens, slots = torch.randint(0, 40, (2, 9)), torch.tensor([0, 8, 12])
    expected = model(ModelInputs(tokens), slots)["values"]
    assert torch.equal(ValueModel.load(tmp_path, CPU)(ModelInputs(tokens), slots)["values"], expected)
    plain = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(plain(tokens).last_hidden_state, model.decoder(tokens).last_hidden_state)
    (tmp_path / HEAD_FILE).unlink()
    with pytest.raises(CheckpointError, match="value head"):
        ValueModel.load(tmp_path, CPU)
