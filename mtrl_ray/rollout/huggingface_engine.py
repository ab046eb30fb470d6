"""transformers behind the `Engine` interface, for machines without vLLM.

Each `step` takes what is waiting, up to `rollout.concurrency` requests, and decodes it to the end as one left-padded
batch; rows that have finished leave the batch when half of it is idle. A request draws its uniforms from its own seed
and samples by inverse distribution function, so a neighbour in the batch changes nothing.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtrl_ray.dialogue.conversation import Finish
from mtrl_ray.errors import EngineError
from mtrl_ray.rollout.engine import Generation, SampleRequest, require_reference

if TYPE_CHECKING:
    from mtrl_ray.settings.tree import ModelSettings, RolloutSettings


class HuggingFaceEngine:
    """Batched decoding with a key-value cache. See `Engine`."""

    def __init__(
        self, path: str, stop_ids: tuple[int, ...], rollout: "RolloutSettings", model: "ModelSettings"
    ) -> None:
        from mtrl_ray.models.policy import load_policy

        self._device = torch.device("cuda" if rollout.gpus and torch.cuda.is_available() else "cpu")
        self._model = load_policy(path, model.dtype).to(self._device).eval()
        self._reference = copy.deepcopy(self._model) if rollout.reference else None
        self._stop_ids = torch.tensor(stop_ids, device=self._device)
        self._batch = rollout.concurrency
        self._waiting: dict[str, SampleRequest] = {}
        self.version = 0
        self.progress = 0

    def submit(self, request: SampleRequest) -> None:
        """See `Engine.submit`."""
        require_reference(request, self._reference is not None)
        self._waiting[request.id] = request

    def step(self) -> list[Generation]:
        """See `Engine.step`; everything in one step is sampled under one version."""
        batch = [self._waiting.pop(identity) for identity in list(self._waiting)[: self._batch]]
        if not batch:
            return []
        try:
            with torch.inference_mode():
                models = [self._model, self._reference] if any(one.mixture for one in batch) else [self._model]
                return _Wave(models, self._stop_ids, batch, self.version, self._device).decode(self._sampled)
        except RuntimeError as error:
            raise EngineError(f"transformers failed while sampling for {len(batch)} requests: {error}") from error

    def _sampled(self) -> None:
        self.progress += 1

    def abort(self, ids: Iterable[str]) -> None:
        """See `Engine.abort`."""
        for identity in ids:
            self._waiting.pop(identity, None)

    @property
    def in_flight(self) -> int:
        """See `Engine.in_flight`."""
        return len(self._waiting)

    def load_weights(self, weights: Iterator[tuple[str, Any]], version: int) -> None:
        """See `Engine.load_weights`."""
        state = dict(weights)
        try:
            missing, unexpected = self._model.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise EngineError(f"the weights of version {version} do not fit the model: {error}") from error
        tied = set(getattr(self._model, "_tied_weights_keys", None) or ())
        if unexpected or set(missing) - tied:
            raise EngineError(f"the weights of version {version}: missing {missing}, not of this model {unexpected}")
        self.version = version

    def reset_cache(self) -> None:
        """See `Engine.reset_cache`; nothing is cached between steps."""

    def close(self) -> None:
        """See `Engine.close`."""
        self._waiting.clear()


class _Wave:
    """One batch from prefill to its last token. Rows are positions in the current, shrinking batch.

    `models`: the policy, and the reference if a request uses the mixture; each keeps a cache of its own.
    """

    def __init__(
        self, models: list[Any], stop_ids: torch.Tensor, batch: list[SampleRequest], version: int, device: torch.device
    ) -> None:
        self._models, self._stop_ids, self._version, self._device = models, stop_ids, version, device
        self._requests = batch
        self._tokens: list[list[int]] = [[] for _ in batch]
        self._logprobs: list[list[float]] = [[] for _ in batch]
        self._finish: dict[int, Finish] = {}
        longest = max(request.max_tokens for request in batch)
        draws = [np.random.default_rng(request.seed).random(longest, dtype=np.float64) for request in batch]
        self._uniforms = torch.from_numpy(np.stack(draws)).to(device)  # [requests, max_tokens]
        self._shares = torch.tensor([request.mixture for request in batch], device=device)
        self._temperatures = torch.tensor([request.temperature for request in batch], device=device)
        self._rows = torch.arange(len(batch), device=device)  # request of each row

    def decode(self, sampled: Callable[[], object]) -> list[Generation]:
        """Every request to its end; `sampled` is called after each token."""
        ids, attention = self._padded_prompts()
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        caches: list[Any] = [None] * len(self._models)
        while True:
            logits = []
            for number, model in enumerate(self._models):
                output = model(
                    input_ids=ids,
                    attention_mask=attention,
                    position_ids=positions,
                    past_key_values=caches[number],
                    use_cache=True,
                    logits_to_keep=1,
                )
                caches[number] = output.past_key_values
                logits.append(output.logits[:, -1].float())
            tokens, alive = self._sample(self._mixed(*logits))
            sampled()
            if not alive.any():
                return [self._generation(index) for index in range(len(self._requests))]
            if alive.sum() * 2 <= len(alive):
                keep = alive.nonzero()[:, 0]
                for cache in caches:
                    cache.batch_select_indices(keep)
                attention, positions, tokens = attention[keep], positions[keep], tokens[keep]
                self._rows = self._rows[keep]
            ids = tokens[:, None]
            attention = torch.cat([attention, attention.new_ones(len(attention), 1)], dim=1)
            positions = positions[:, -1:] + 1

    def _mixed(self, own: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        """`(1-τ) z_π + τ z_μ`, [rows, vocabulary]: the logits of the geometric mixture."""
        return own if other is None else torch.lerp(own, other, self._shares[self._rows][:, None])

    def _padded_prompts(self) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(request.prompt) for request in self._requests)
        ids = torch.zeros(len(self._requests), width, dtype=torch.long)
        attention = torch.zeros_like(ids)
        for row, request in enumerate(self._requests):
            ids[row, width - len(request.prompt) :] = torch.tensor(request.prompt)
            attention[row, width - len(request.prompt) :] = 1
        return ids.to(self._device), attention.to(self._device)

    def _sample(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sampled ids [rows] and which rows go on, bool [rows]. Temperature 0 takes the most likely id."""
        temperature = self._temperatures[self._rows]
        logprobs = (logits / temperature.clamp(min=1e-6)[:, None]).log_softmax(-1)
        step = torch.tensor([len(self._tokens[row]) for row in self._rows.tolist()], device=self._device)
        uniform = self._uniforms[self._rows, step.clamp(max=self._uniforms.shape[1] - 1)]
        cumulative = logprobs.double().exp().cumsum(-1)
        drawn = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
        sampled = torch.where(temperature > 0, drawn.clamp(max=logits.shape[1] - 1), logits.argmax(-1))
        chosen = logprobs.gather(1, sampled[:, None])[:, 0]
        stopped = torch.isin(sampled, self._stop_ids)
        alive = [
            self._record(*row)
            for row in zip(*(x.tolist() for x in (self._rows, sampled, chosen, stopped)), strict=True)
        ]
        return sampled, torch.tensor(alive, device=self._device)

    def _record(self, index: int, token: int, logprob: float, stopped: bool) -> bool:
        if index in self._finish:
            return False
        self._tokens[index].append(token)
        self._logprobs[index].append(logprob)
        if stopped:
            self._finish[index] = Finish.STOP
        elif len(self._tokens[index]) == self._requests[index].max_tokens:
            self._finish[index] = Finish.LENGTH
        return index not in self._finish

    def _generation(self, index: int) -> Generation:
        tokens, request = self._tokens[index], self._requests[index]
        versions = [self._version] * len(tokens)
        return Generation(request.id, tokens, self._logprobs[index], versions, self._finish[index])
