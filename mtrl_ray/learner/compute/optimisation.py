"""One model's optimiser: gradients in one flat buffer, summed over processes, clipped, and applied.

- Every parameter's gradient is a view of one float32 buffer. Its last entries contain the statistics of the step, so one
  all-reduce carries a whole step.
- Losses are already divided by denominators of the whole minibatch, so gradients of micro-batches and processes add up to the
  minibatch's, and nothing is averaged.
- A step whose gradient norm is not finite is skipped and counted. All processes agree on it, because they see the same sum.
- The optimiser is Adam with decoupled weight decay (1711.05101) on float32 parameters, whatever precision the model computes
  in.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtrl_ray.learner.compute.collective import Collective

STATISTICS = 32
"""Most statistics that one step can carry."""


@dataclass(frozen=True)
class Step:
    """One optimiser step: learning rate and the bound of the gradient's norm (None: none)."""

    learning_rate: float
    max_norm: float | None = 1.0


class Optimiser:
    """AdamW over a module's trainable parameters. `skipped` counts steps whose gradient was not finite."""

    def __init__(self, module: nn.Module, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.0) -> None:
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        device = self._parameters[0].device
        size = sum(parameter.numel() for parameter in self._parameters)
        self._buffer = torch.zeros(size + STATISTICS, device=device)
        self._gradient = self._buffer[:size]
        self._adam = torch.optim.AdamW(self._parameters, lr=0.0, betas=betas, weight_decay=weight_decay, fused=True)
        self.skipped = 0
        self._attach()

    def _attach(self) -> None:
        start = 0
        for parameter in self._parameters:
            end = start + parameter.numel()
            parameter.grad = self._buffer[start:end].view_as(parameter)
            start = end

    def clear(self) -> None:
        """Forget the gradients gathered so far."""
        self._buffer.zero_()

    def step(
        self, learning_rate: float, max_norm: float | None, statistics: Mapping[str, Tensor], collective: Collective
    ) -> dict[str, float]:
        """Sum gradients and statistics over the processes and take one step.

        max_norm: the gradient's Euclidean norm is clipped to it; None: no clipping. `statistics`: scalars that add up
        over processes, the same names on each. Returns their sums, `gradient_norm` (before clipping) and `skipped`.
        """
        names = sorted(statistics)
        if len(names) > STATISTICS:
            raise ValueError(f"a step carries at most {STATISTICS} statistics; {len(names)} were given")
        if names:
            tail = self._buffer[len(self._gradient) : len(self._gradient) + len(names)]
            tail.copy_(torch.stack([statistics[name].detach().float() for name in names]))
        collective.add(self._buffer)
        norm = float(torch.linalg.vector_norm(self._gradient))
        sums = self._buffer[len(self._gradient) :].tolist()
        if math.isfinite(norm):
            self._apply(learning_rate, max_norm, norm)
        else:
            self.skipped += 1
        return {
            **dict(zip(names, sums, strict=False)),
            "gradient_norm": norm,
            "skipped": float(not math.isfinite(norm)),
        }

    def _apply(self, learning_rate: float, max_norm: float | None, norm: float) -> None:
        if max_norm is not None and norm > max_norm:
            self._gradient.mul_(max_norm / norm)
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._adam.step()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: tensors and numbers."""
        return {"adam": self._adam.state_dict(), "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._adam.load_state_dict(state["adam"])
        self.skipped = int(state["skipped"])


def warmup_cosine(progress: float, warmup: float, floor: float = 0.1) -> float:
    """Factor of the learning rate at `progress` in [0, 1]: linear up to `warmup`, then a cosine down to `floor`."""
    if progress < warmup:
        return max(progress / warmup, 0.0)
    rest = (min(progress, 1.0) - warmup) / max(1.0 - warmup, 1e-9)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * rest))
