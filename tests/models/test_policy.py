from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from mtrl_ray.errors import CheckpointError, ConfigurationError
from mtrl_ray.models import policy
from mtrl_ray.models.inputs import ModelInputs, reads_trees
from mtrl_ray.models.policy import PolicyReader, load_policy

CPU = torch.device("cpu")
SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama(**options: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=48, initializer_range=0.3, **options)).eval()


def gemma2() -> PreTrainedModel:
    """Soft caps on its logits, sliding windows in every other layer."""
    torch.manual_seed(0)
    sizes = SIZES | {"head_dim": 16, "num_key_value_heads": 2, "intermediate_size": 48, "pad_token_id": 0}
    return Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=2.0, initializer_range=0.3)).eval()


def gpt2() -> PreTrainedModel:
    """Learned positions."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


def mamba() -> PreTrainedModel:
    """A state that runs on from slot to slot."""
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, state_size=4)).eval()


@pytest.mark.parametrize("make", [llama, gemma2, gpt2])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reads_are_those_of_the_full_logits(make: object, temperature: float) -> None:
    model = make()  # type: ignore[operator]
    tokens = torch.randint(0, 40, (3, 11), generator=torch.Generator().manual_seed(1))
    slots, targets = torch.tensor([0, 5, 12, 12, 31]), torch.tensor([3, 7, 39, 0, 12])
    found = PolicyReader(model)(ModelInputs(tokens), slots, targets, temperature)
    logprobs = (model(tokens).logits / temperature).log_softmax(-1).flatten(0, 1)[slots]
    torch.testing.assert_close(found["logprobs"], logprobs[torch.arange(5), targets])
    torch.testing.assert_close(found["entropies"], -(logprobs.exp() * logprobs).sum(-1))


def test_the_head_is_read_where_it_is_all_there_is() -> None:
    assert PolicyReader(llama()).linear_head
    assert PolicyReader(gpt2()).linear_head
    assert not PolicyReader(gemma2()).linear_head


def test_models_that_cannot_read_trees_are_found_out() -> None:
    assert reads_trees(llama().base_model, CPU)
    assert reads_trees(gpt2().base_model, CPU)
    assert not reads_trees(llama(attn_implementation="eager").base_model, CPU), "it adds masks, it does not apply them"
    assert not reads_trees(mamba().base_model, CPU)
    assert not reads_trees(gemma2().base_model, CPU)


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, entropy_gradient: bool) -> None:
    tokens = torch.randint(0, 40, (3, 11))
    slots, targets = torch.arange(30), torch.randint(0, 40, (30,))
    gradients = []
    for budget in (2**25, 40 * 7):
        monkeypatch.setattr(policy, "LOGIT_BUDGET", budget)
        reader = PolicyReader(llama())
        found = reader(ModelInputs(tokens), slots, targets, 0.9, entropy_gradient)
        assert len(found["entropies"]) == 30
        assert found["entropies"].requires_grad == entropy_gradient
        total = (found["logprobs"] * torch.arange(30)).sum()
        (total + found["entropies"].sum() if entropy_gradient else total).backward()
        gradients.append([value.grad for value in reader.parameters()])
    for whole, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, chunked, rtol=1e-4, atol=1e-4)


def test_temperature_has_to_be_positive() -> None:
    reader, one = PolicyReader(llama()), torch.tensor([0])
    with pytest.raises(ConfigurationError, match="temperature is 0"):
        reader(ModelInputs(torch.ones(1, 2, dtype=torch.int64)), one, one, 0.0)


def test_folders_are_opened_and_broken_ones_refused(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path)
    opened = load_policy(tmp_path, "float32")
    assert not opened.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor)
    assert load_policy(tmp_path, torch.bfloat16).dtype == torch.bfloat16

    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors, including 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        load_policy(tmp_path)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="no model can be loaded"):
        load_policy(tmp_path)
    with pytest.raises(CheckpointError, match="no model can be loaded"):
        load_policy(tmp_path / "nothing")
