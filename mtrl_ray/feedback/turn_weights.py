"""A judge's weights of the agent's turns, as a column of the conversations they belong to.

1. Runs as a Ray task in parallel with the learner; conversations are judged concurrently, `rollout.concurrency` at a time.
2. A conversation that cannot be judged (the endpoint is away or refuses it, the answer is unusable, the judge raises) is
   left out and counted with its cause: it never enters a batch with made-up weights. Groups may be of any size,
   so the rest stays unbiased. If too many are left out, the judge raises (`failures`).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pydantic import model_validator

from mtrl_envs.llm.completions import JUDGE, LLMSettings
from mtrl_envs.llm.turn_judge import LLMJudge, recorded_weights
from mtrl_ray.dialogue.conversation import TURN_WEIGHTS, Conversation, from_table
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.processes.failures import Failure, attempt, causes, stop_at_too_many
from mtrl_ray.processes.refs import Ref
from mtrl_ray.processes.small_tasks import small_task
from mtrl_ray.settings.section import Section
from mtrl_ray.settings.tree import RolloutSettings

if TYPE_CHECKING:
    from mtrl_ray.system.system import System

Weigh = Callable[[Conversation, int], list[float]]


class JudgeSettings(Section):
    """The judge of which turns mattered."""

    source: Literal["environment", "llm"] = "environment"
    """`environment`: the simulated user's own record, where it keeps one; `llm`: an LLM reads the conversation."""
    llm: dict[str, Any] | None = None
    """Of the source `llm`: base_url, model, and the other keys of an LLM user's settings."""

    @model_validator(mode="after")
    def _possible(self) -> "JudgeSettings":
        if (self.source == "llm") != (self.llm is not None):
            needs = "needs llm with at least base_url and model" if self.source == "llm" else "takes no llm settings"
            raise ValueError(f"source is {self.source}, which {needs}")
        self.weigh()
        return self

    def weigh(self) -> Weigh:
        """The judge. Raises ConfigurationError for LLM settings that cannot work."""
        if self.llm is None:
            return lambda conversation, seed: recorded_weights(conversation)
        try:
            return LLMJudge(LLMSettings.parse("judge", JUDGE | self.llm)).weights
        except ConfigurationError as error:
            raise ValueError(str(error)) from None


def judge_turns(system: "System", conversations: Ref[pa.Table], settings: JudgeSettings) -> Ref[pa.Table]:
    """Those of the conversations that could be judged, with the judge's weights of their turns. Returns at once."""
    system.view.part("rollout", f"judging turns ({settings.source})")
    table, numbers, failures = judged.remote(conversations, settings, system.settings.rollout)
    system.record("judge", numbers)
    system.record_failures("judging turns", failures)
    judged_table: Ref[pa.Table] = table
    return judged_table


@small_task(num_returns=3)
def judged(
    conversations: pa.Table, settings: JudgeSettings, rollout: RolloutSettings
) -> tuple[pa.Table, dict[str, float], str]:
    """`judge` as a task."""
    return judge(conversations, settings.weigh(), rollout)


def judge(conversations: pa.Table, weigh: Weigh, rollout: RolloutSettings) -> tuple[pa.Table, dict[str, float], str]:
    """The conversations that could be judged, with the column `turn_weights`; how many were `judged`, `unjudged`; why.

    Of rollout: `concurrency`, `retries`, `data_errors`. Raises DataError or EngineError if too many could not be.
    """
    talks = from_table(conversations)
    with ThreadPoolExecutor(max_workers=rollout.concurrency, thread_name_prefix="judge") as pool:
        answers = list(pool.map(lambda one: _weigh(weigh, one, rollout.retries), talks))
    failed = [answer for answer in answers if isinstance(answer, Failure)]
    stop_at_too_many(failed, len(talks), rollout.data_errors, "judgements of turns", rollout.retries + 1)
    weights = [answer for answer in answers if not isinstance(answer, Failure)]
    table = conversations.filter(pa.array([not isinstance(answer, Failure) for answer in answers], pa.bool_()))
    table = table.append_column(TURN_WEIGHTS, pa.array(weights, pa.list_(pa.float32())))
    return table, {"judged": float(len(weights)), "unjudged": float(len(failed))}, causes(failed)


def _weigh(weigh: Weigh, conversation: Conversation, retries: int) -> list[float] | Failure:
    """Weights, or the cause of failure after `retries` more tries, each with its own seed."""
    return attempt(conversation.id, lambda trial: weigh(conversation, conversation.seed + trial), retries)
