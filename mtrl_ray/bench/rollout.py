"""The speed of rollouts relative to the raw engine: `mtrl bench rollout`.

1. `dialogue`: conversations of the environment through the dialogue loop, as in a worker, to Arrow rows.
2. `raw`: `LLM.generate` of the same engine on the same prompts (every turn's whole history) and response lengths, all
   given at once, at the same concurrency, with the same sampling parameters (seeds, log-probabilities).
3. `bare`: the same without seeds and log-probabilities, which training needs.
4. The three alternate within one run; sums over the rounds are compared. `ratio` is dialogue ÷ raw.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtrl_envs.registry import make
from mtrl_ray.dialogue.chat import chat_format
from mtrl_ray.dialogue.conversation import Conversation, Role, to_table
from mtrl_ray.monitoring.heartbeat import Steps
from mtrl_ray.rollout.dialogue import Limits
from mtrl_ray.rollout.lease import make_leases
from mtrl_ray.rollout.loop import DialogueLoop
from mtrl_ray.rollout.vllm_engine import VllmEngine
from mtrl_ray.settings.tree import Settings


@dataclass
class _Tally:
    tokens: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


@dataclass
class _Tallies:
    dialogue: _Tally = field(default_factory=_Tally)
    raw: _Tally = field(default_factory=_Tally)
    bare: _Tally = field(default_factory=_Tally)


def bench_rollout(
    settings: Settings,
    model: Path,
    conversations: int,
    rounds: int,
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """The comparison with `conversations` conversations a round; figures for `--json`. `say` gets a line per step."""
    steps = Steps(1 + 3 * rounds, say)
    chat = chat_format(str(model))
    engine = VllmEngine(str(model), chat.stop_ids, settings.rollout, settings.model)
    rollout = settings.rollout
    limits = Limits(rollout.response_tokens, settings.model.context_length, rollout.temperature)
    environment = make(settings.environment.name, **settings.environment.options)
    loop = DialogueLoop(engine, chat, environment, limits, rollout.concurrency, rollout.user_seconds)
    tallies = _Tallies()
    steps.begin("dialogue, untimed")
    _hold(loop, settings, conversations, tag=0)  # compiles kernels, fills caches
    for number in range(1, rounds + 1):
        steps.begin("dialogue")
        started = time.perf_counter()
        held = _hold(loop, settings, conversations, tag=number)
        tallies.dialogue.seconds += time.perf_counter() - started
        tallies.dialogue.tokens += sum(len(turn.tokens) for done in held for turn in done.turns if turn.logprobs)
        steps.begin("LLM.generate")
        _generate(engine, held, rollout.temperature, tallies.raw, trained=True)
        steps.begin("LLM.generate without log-probabilities")
        _generate(engine, held, rollout.temperature, tallies.bare, trained=False)
    return {
        "ratio": tallies.dialogue.rate / tallies.raw.rate,
        "ratio_to_bare": tallies.dialogue.rate / tallies.bare.rate,
        "dialogue_tokens_per_second": tallies.dialogue.rate,
        "raw_tokens_per_second": tallies.raw.rate,
        "bare_tokens_per_second": tallies.bare.rate,
        "conversations_per_second": rounds * conversations / tallies.dialogue.seconds,
        "concurrency": rollout.concurrency,
        "conversations": conversations,
        "rounds": rounds,
    }


def _hold(loop: DialogueLoop, settings: Settings, conversations: int, tag: int) -> list[Conversation]:
    """One batch of conversations, from leases to Arrow rows, the loop stepping in this thread."""
    leases = make_leases(settings.run.seed, "train", tag, range(conversations))
    job = loop.rollout(leases)
    while not job.done.is_set():
        loop.step()
    to_table(job.conversations)
    return job.conversations


def _generate(engine: VllmEngine, held: list[Conversation], temperature: float, tally: _Tally, trained: bool) -> None:
    """The same responses from `LLM.generate`: every turn's history as a prompt, its length as the limit."""
    import vllm

    prompts, parameters = [], []
    for done in held:
        history: list[int] = []
        for number, turn in enumerate(done.turns):
            if turn.role == Role.AGENT:
                prompts.append({"prompt_token_ids": list(history)})
                extra = {"seed": done.seed % 2**31 + number, "logprobs": 0, "flat_logprobs": True} if trained else {}
                parameters.append(
                    vllm.SamplingParams(
                        temperature=temperature, max_tokens=len(turn.tokens), ignore_eos=True, detokenize=False, **extra
                    )
                )
            history += turn.tokens
    engine.reset_cache()
    started = time.perf_counter()
    outputs = engine.llm.generate(prompts, parameters, use_tqdm=False)
    tally.seconds += time.perf_counter() - started
    tally.tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
