"""One optimiser step against torch's own."""

import copy

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from mtrl_ray.learner.compute.collective import Collective
from mtrl_ray.learner.compute.optimisation import STATISTICS, Optimiser, Step
from mtrl_ray.learner.learner import Learner
from mtrl_ray.learner.rows.minibatches import minibatches
from mtrl_ray.learner.rows.packing import turn_tokens
from mtrl_ray.learner.rows.tables import Dialogues


def tied() -> nn.Module:
    """Two layers that share a weight, and a frozen one."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    module[2].requires_grad_(False)
    return module


@pytest.mark.parametrize("max_norm", [None, 0.01])
def test_steps_are_adams(max_norm: float | None) -> None:
    module = tied()
    plain = copy.deepcopy(module)
    adam = torch.optim.AdamW(
        [p for p in plain.parameters() if p.requires_grad], lr=0.1, betas=(0.9, 0.95), weight_decay=0.1
    )
    ours = Optimiser(module, weight_decay=0.1)
    for number in range(4):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        ours.clear()
        for half in x.split(4):
            (module(half).square().sum() / len(x)).backward()
        result = ours.step(0.1, max_norm, {"total": torch.tensor(2.5)}, Collective())
        adam.zero_grad()
        (plain(x).square().sum() / len(x)).backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), max_norm or 1e9)
        adam.step()
        assert result["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)
        assert (result["total"], result["skipped"]) == (2.5, 0.0)
    for own, other in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_too_many_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 32 statistics"):
        Optimiser(tied()).step(0.1, None, {str(n): torch.zeros(()) for n in range(STATISTICS + 1)}, Collective())


def test_a_step_that_is_not_finite_is_skipped_and_counted(learner: Learner, conversations: pa.Table) -> None:
    rows = turn_tokens(Dialogues.read(conversations))
    poison = True

    def loss(outputs: dict[str, Tensor], items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        total = outputs["logprobs"].sum() / (0.0 if poison else len(rows.items))
        return total, {"items": torch.tensor(float(len(items)))}

    selection = minibatches(rows, learner.core.generator("test"), 1000)[0]
    before = {name: value.clone() for name, value in learner.core.models.policy.named_parameters()}
    first = learner.core.update("policy", rows, selection, loss, Step(1e-3))
    assert first["skipped"] == 1.0
    assert learner.core.models.optimiser("policy").skipped == 1
    assert all(torch.equal(before[name], value) for name, value in learner.core.models.policy.named_parameters())
    poison = False
    second = learner.core.update("policy", rows, selection, loss, Step(1e-3))
    assert (second["skipped"], second["items"]) == (0.0, len(rows.items))
    assert any(not torch.equal(before[name], value) for name, value in learner.core.models.policy.named_parameters())
