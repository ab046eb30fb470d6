"""vLLM behind the `Engine` interface, in the calling process.

Engine core and worker stay in this process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`): the actor starts in a third of the
time, weights pass as tensors, and an actor that dies leaves no orphan. vLLM's own loggers are set to errors only.
"""

import gc
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from mtrl_ray.dialogue.conversation import Finish
from mtrl_ray.errors import EngineError
from mtrl_ray.processes.preloading import VLLM_ENVIRONMENT
from mtrl_ray.processes.starting import without_collecting
from mtrl_ray.rollout import seeded_sampling
from mtrl_ray.rollout.engine import Generation, SampleRequest, require_reference

if TYPE_CHECKING:
    from mtrl_ray.settings.tree import ModelSettings, RolloutSettings

CACHE_BYTES = 2**30
"""The largest cache of keys and values on a CPU (`cache_bytes`)."""
FINISHES = {"stop": Finish.STOP, "length": Finish.LENGTH}
"""How vLLM ends a response. Any other end (abort, error) leaves a torn one, which nothing may learn from."""
CPU_BLOCK_TOKENS = 32
"""Tokens per cache block on a CPU: a turn is short, and a history shorter than a block is never reused."""


def cache_bytes(path: str, rollout: "RolloutSettings", model: "ModelSettings") -> int:
    """Bytes of the KV cache on a machine without a GPU: `concurrency` conversations as long as the context, at most
    `CACHE_BYTES` unless a single one takes more. A worker clears all of it when it starts.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    models = 2 if rollout.reference else 1
    token = 2 * models * config.num_hidden_layers * heads * size * (4 if model.dtype == "float32" else 2)
    blocks = -(-model.context_length // CPU_BLOCK_TOKENS)
    conversation = int(token * blocks * CPU_BLOCK_TOKENS)
    return max(min(rollout.concurrency * conversation, CACHE_BYTES), conversation)


class VllmEngine:
    """vLLM's engine with seeded requests, log-probabilities and versioned weights; `llm` is its owner. See `Engine`."""

    def __init__(
        self, path: str, stop_ids: tuple[int, ...], rollout: "RolloutSettings", model: "ModelSettings"
    ) -> None:
        for name, value in VLLM_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        with without_collecting():
            import torch
            import vllm
            from vllm import LLM
            from vllm.platforms import current_platform

            gc.freeze()  # vLLM collects at many steps of its start; what has been imported is not searched again
            device: dict[str, Any] = {"gpu_memory_utilization": rollout.gpu_memory}
            if current_platform.is_cpu():
                # Compiling the ranks of tokens, which nobody reads, takes 1.5 s of the first step.
                torch.compiler.set_stance("force_eager")
                # A prompt prefilled in parts makes vLLM rewind its request's generator, which CPU generators cannot do.
                device = {
                    "enforce_eager": True,
                    "block_size": CPU_BLOCK_TOKENS,
                    "enable_chunked_prefill": False,
                    "kv_cache_memory_bytes": cache_bytes(path, rollout, model),
                }
            if rollout.reference:
                from mtrl_ray.rollout import vllm_mixture

                device |= vllm_mixture.arguments(path)
            self.llm = LLM(
                model=path,
                dtype=model.dtype,
                max_model_len=model.context_length,
                max_num_seqs=rollout.concurrency,
                max_num_batched_tokens=max(8192, model.context_length),
                skip_tokenizer_init=True,
                logprobs_mode="processed_logprobs",
                disable_log_stats=True,
                seed=0,
                **device,
            )
        self._vllm = vllm
        self._engine = self.llm.llm_engine
        if current_platform.is_cpu():
            self._engine.collective_rpc(lambda worker: seeded_sampling.install(worker.model_runner.sampler))
        if rollout.reference:
            self._engine.collective_rpc(vllm_mixture.connect)
        self._mixes = rollout.reference
        self._stop_ids = list(stop_ids)
        self._shapes = _checkpoint_shapes(path)
        self._internal: dict[str, str] = {}
        self.version = 0
        self.progress, self._finished_tokens = 0, 0
        self._engine.set_weight_version("0")

    def submit(self, request: SampleRequest) -> None:
        """See `Engine.submit`."""
        require_reference(request, self._mixes)
        parameters = self._vllm.SamplingParams(
            temperature=request.temperature,
            seed=request.seed,
            max_tokens=request.max_tokens,
            stop_token_ids=self._stop_ids,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
            extra_args={"mixture": request.mixture} if request.mixture else None,
        )
        prompt = {"prompt_token_ids": request.prompt}
        self._internal[request.id] = self._engine.add_request(request.id, prompt, parameters)

    def step(self) -> list[Generation]:
        """See `Engine.step`."""
        try:
            outputs = self._engine.step()
        except Exception as error:
            raise EngineError(f"vLLM failed while sampling for {self.in_flight} requests: {error}") from error
        finished = [self._generation(output) for output in outputs if output.finished]
        self._finished_tokens += sum(len(generation.tokens) for generation in finished)
        states = self._engine.output_processor.request_states.values()
        self.progress = self._finished_tokens + sum(state.detokenizer.num_output_tokens() for state in states)
        return finished

    def _generation(self, output: Any) -> Generation:
        completion = output.outputs[0]
        self._internal.pop(output.request_id, None)
        versions: list[int] = []
        for span in completion.weight_versions:
            versions += [int(span.version)] * (span.end - span.start)
        tokens = list(completion.token_ids)
        if completion.finish_reason not in FINISHES:
            raise EngineError(f"vLLM gave request {output.request_id!r} up: its finish is {completion.finish_reason!r}")
        finish = FINISHES[completion.finish_reason]
        return Generation(output.request_id, tokens, list(completion.logprobs.logprobs), versions, finish)

    def abort(self, ids: Iterable[str]) -> None:
        """See `Engine.abort`."""
        known = [self._internal.pop(identity) for identity in ids if identity in self._internal]
        self._engine.abort_request(known, internal=True)

    @property
    def in_flight(self) -> int:
        """See `Engine.in_flight`."""
        return int(self._engine.get_num_unfinished_requests())

    def load_weights(self, weights: Iterator[tuple[str, Any]], version: int) -> None:
        """See `Engine.load_weights`. Names and shapes are compared first: a reload that fails halfway ruins the engine."""
        given = dict(weights)
        wrong = [name for name, tensor in given.items() if self._shapes.get(name, tensor.shape) != tensor.shape]
        missing = [] if given.keys() - self._shapes.keys() else sorted(self._shapes.keys() - given.keys())
        if wrong or missing:
            raise EngineError(
                f"the weights of version {version} are not this model's: other shapes {wrong[:3]}, missing {missing[:3]}"
            )
        try:
            self._engine.collective_rpc(lambda worker: _reload(worker, iter(given.items())))
        except Exception as error:
            raise EngineError(f"vLLM could not take the weights of version {version}: {error}") from error
        self._engine.reset_prefix_cache(reset_running_requests=True)
        self._engine.set_weight_version(str(version))
        self.version = version

    def reset_cache(self) -> None:
        """See `Engine.reset_cache`."""
        self._engine.reset_prefix_cache()

    def close(self) -> None:
        """See `Engine.close`."""
        self._engine.engine_core.shutdown()


def _checkpoint_shapes(path: str) -> dict[str, Any]:
    """Name and shape of every tensor of a model's checkpoint, tied ones once."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}


def _reload(worker: Any, weights: Iterator[tuple[str, Any]]) -> None:
    """vLLM's reload, and what it forgets: on a CPU an output head that shares the embedding's weights multiplies with a
    packed copy of them, which is made once and would stay the old one."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.platforms import current_platform

    worker.reload_weights(weights_iterator=weights)
    if current_platform.is_cpu():
        for module in worker.get_model().modules():
            if isinstance(module, VocabParallelEmbedding):
                module.quant_method.process_weights_after_loading(module)
