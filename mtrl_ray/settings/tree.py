"""The tree of settings. Its defaults are the vetted values; a recipe names only what it changes (`mtrl_ray.run.recipes`)."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from mtrl_cluster.demand import LeastSeconds
from mtrl_ray.settings.section import Section

TINY = "tiny"
"""As `model.path`: the tiny model, which the project makes itself."""


class RunSettings(Section):
    """The run as a whole."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    folder: str = "runs"
    """Folder that holds the folders of runs."""
    seed: int = Field(0, ge=0, lt=2**31)
    iterations: int = Field(20, ge=0)
    minutes: float | None = Field(None, gt=0)
    """Wall-clock budget of the training loop; None: no bound but `iterations`."""
    until_gap: float | None = Field(None, gt=0)
    """Training ends when the last 128 training conversations score at least this share of the way from the
    start's held-out score to the scripted expert's; None: never. Sampling hotter than the evaluation lowers that score."""
    checkpoint_every: int = Field(5, ge=1)
    """Iterations between checkpoints; the last iteration always has one."""
    keep_checkpoints: int = Field(2, ge=1)
    checkpoints: str | None = None
    """Where checkpoints lie: a URI that pyarrow knows (s3://…, gs://…, file:///…) or an absolute path, under which each run
    has a folder of its name; None: the run's own folder."""
    wait_seconds: float = Field(3600.0, gt=0)
    """Longest wait for one piece of work of an actor (a fit, an improvement); beyond it the actor counts as lost."""

    @field_validator("checkpoints")
    @classmethod
    def _absolute(cls, given: str | None) -> str | None:
        if given is not None and "://" not in given and not os.path.isabs(given):
            raise ValueError("it has to be a URI (s3://…, file:///…) or an absolute path")
        return given


class EnvironmentSettings(Section):
    """Which environment, and who plays its user."""

    name: str = "sales"
    """A name of the registry, or `package.module:ClassName`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the environment's constructor."""


class WarmStartSettings(Section):
    """How the tiny model learns to speak before reinforcement learning starts."""

    conversations: int = Field(4000, ge=1)
    """Scripted conversations it is trained on."""
    shares: dict[Literal["expert", "greedy", "random"], Annotated[float, Field(ge=0)]] | None = None
    """Of the conversations by scripted agent, as weights; None: the environment's own."""
    probe: float | None = Field(0.9, gt=0, le=1)
    """It ends when this is the probability that the model takes up what the user said (`Environment.probe`); for an environment
    without a probe, when its held-out loss stops falling. None: it ends after `steps`."""
    steps: int = Field(4000, ge=1)
    """Most supervised steps, of 16 conversations each."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Of the first weights and of the order of the conversations."""

    @field_validator("shares")
    @classmethod
    def _somebody_speaks(cls, shares: dict[str, float] | None) -> dict[str, float] | None:
        if shares is not None and not sum(shares.values()) > 0:
            raise ValueError("one of the shares has to be above 0")
        return shares


class ModelSettings(Section):
    """The policy's model."""

    path: str = TINY
    """`tiny` (made by the project), a Hugging Face folder, or a name of the hub."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    layers: int = Field(2, ge=1)
    """Of the tiny model."""
    vocabulary: int = Field(768, ge=300)
    """Of the tiny model's tokenizer."""
    context_length: int = Field(1024, ge=64)
    """Longest history plus response, in tokens."""
    warm_start: WarmStartSettings = WarmStartSettings()


HYSTERESIS_SECONDS = LeastSeconds.scale_up - LeastSeconds.scale_down


class WorkerRange(Section):
    """Bounds between which a fleet follows demand."""

    min: int = Field(1, ge=1)
    max: int = Field(ge=1)
    scale_up_seconds: float = Field(LeastSeconds.scale_up, gt=0)
    """Add a worker only if it saves at least this many seconds per iteration, and remove one only if that costs less than
    these without `HYSTERESIS_SECONDS`."""

    @model_validator(mode="after")
    def _ordered(self) -> "WorkerRange":
        if self.max < self.min:
            raise ValueError(f"min is {self.min} and max is {self.max}; max has to be at least min")
        return self

    @property
    def least_seconds(self) -> LeastSeconds:
        """Both thresholds, apart from each other: otherwise the number of workers would swing."""
        return LeastSeconds(self.scale_up_seconds, max(self.scale_up_seconds - HYSTERESIS_SECONDS, 0.0))


Workers = Annotated[
    Annotated[int, Field(ge=1), Tag("<number>")] | Annotated[WorkerRange, Tag("<range>")],
    Discriminator(lambda given: "<range>" if isinstance(given, dict | WorkerRange) else "<number>"),
]
"""A number, or a range. Tags in angle brackets are no part of a setting's name (`_sentence`)."""


class RolloutSettings(Section):
    """How conversations are held."""

    engine: Literal["auto", "vllm", "huggingface"] = "auto"
    """`auto`: vLLM if it is installed."""
    workers: Workers = 1
    """How many, or `{min: …, max: …}`: as many as the run has use for (`mtrl_cluster.demand`). With a number and scripted users
    the work is cut such that the same bits come out every time (`rollout.chunks`), so a run that was killed and resumed is the
    undisturbed run; with a range, even {min: 2, max: 2}, into smaller pieces, of which a lost worker costs less."""
    spares: int = Field(0, ge=0)
    """Workers beyond these, their engines ready: each takes the place of one that fails, at once."""
    concurrency: int = Field(128, ge=1)
    """Conversations (or single responses) in flight in one worker; also the most questions to a judge at a time."""
    lease_size: int = Field(32, ge=1)
    """Conversations handed to a worker, and returned by it, at a time."""
    lease_seconds: float = Field(300.0, gt=0)
    """Longest time without progress of a worker that has work, in seconds; past it the worker is restarted."""
    retries: int = Field(3, ge=0)
    """How often a failed lease is tried again before it is dropped and counted."""
    data_errors: float = Field(0.5, ge=0, le=1)
    """Share of an iteration's conversations, and of what a judge is asked about them, that may be dropped. Beyond it wrong data
    (an environment that raises, or answers nonsense) stop the run, which names the first; an endpoint that does not answer is
    a failure of the machinery."""
    temperature: float = Field(1.0, ge=0)
    reference: bool = False
    """Whether workers hold the initial policy beside the policy, for conversations of the two's mixture (MTPO-τ)."""
    response_tokens: int = Field(32, ge=1)
    """Longest response, in tokens."""
    cpus: float = Field(1.0, ge=0)
    """Of one worker, as Ray counts them."""
    gpus: float = Field(0.0, ge=0)
    """Of one worker, as Ray counts them."""
    gpu_memory: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that vLLM may take."""
    user_seconds: float = Field(150.0, gt=0)
    """Longest turn of a user, in seconds; a conversation whose user takes longer fails, and no other."""

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most workers."""
        if isinstance(self.workers, WorkerRange):
            return self.workers.min, self.workers.max
        return self.workers, self.workers


class ReplaySettings(Section):
    """What stays in memory; the journal keeps everything."""

    max_staleness: int = Field(1_000, ge=0)
    """In weight versions."""
    max_gib: float = Field(2.0, gt=0)


class LearnerSettings(Section):
    """The learner actors."""

    processes: int = Field(1, ge=1)
    spare: bool = False
    """Whether as many processes again, the model loaded, are there to take the place of these when one is lost."""
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)
    """Of one process, as Ray counts them; above 0 its models are on the GPU."""
    threads: int | None = Field(None, ge=1)
    """Of torch, per process; None: the machine's cores shared among the processes."""
    tokens_per_microbatch: int = Field(16_384, ge=64)


class EvaluationSettings(Section):
    """Held-out contexts, and how often the policy is tried on them while it trains."""

    contexts: int = Field(256, ge=1)
    every: int = Field(0, ge=0)
    """Iterations between evaluations; 0: only before the first and after the last."""


class Settings(Section):
    """The whole tree."""

    run: RunSettings = RunSettings()
    environment: EnvironmentSettings = EnvironmentSettings()
    model: ModelSettings = ModelSettings()
    rollout: RolloutSettings = RolloutSettings()
    replay: ReplaySettings = ReplaySettings()
    learner: LearnerSettings = LearnerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    algorithm: dict[str, Any] = Field(default_factory=lambda: {"name": "iterative_ppo"})

    @model_validator(mode="after")
    def _possible(self) -> "Settings":
        if self.rollout.response_tokens >= self.model.context_length:
            raise ValueError(
                f"rollout.response_tokens is {self.rollout.response_tokens}, model.context_length "
                f"{self.model.context_length}; a response has to be shorter than the context"
            )
        return self

    @property
    def run_folder(self) -> Path:
        """Where this run leaves everything."""
        return Path(self.run.folder).absolute() / self.run.name
