"""mtrl-ray as a library: train, load, evaluate. `import mtrl_ray` gives these names.

- Settings are a recipe and overrides, as on the command line: `train("sales", {"run.iterations": 2})`, or whole sections as
  keywords, `train("sales", run={"iterations": 2})`.
- An environment is a name, or a class, or a function that makes one. A class of an importable module goes to the workers by
  its name. One of the running program (a notebook, `__main__`, a function) goes to them by value (cloudpickle).
- Nothing is printed unless it is asked for (`show=True`); what may be wrong with an environment is a warning. Errors are those
  of `mtrl_ray.errors`.
"""

import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from ray import cloudpickle

from mtrl_envs.base import Environment
from mtrl_envs.registry import give
from mtrl_ray.dialogue.conversation import Conversation, from_table
from mtrl_ray.errors import ConfigurationError
from mtrl_ray.evaluation.holdout import keep
from mtrl_ray.monitoring import contents
from mtrl_ray.monitoring.live import LiveView
from mtrl_ray.monitoring.view import Silent, View
from mtrl_ray.replay.journal import Journal
from mtrl_ray.run.driving import drive
from mtrl_ray.run.evaluating import Evaluation, evaluate_model
from mtrl_ray.run.folder import CONFIG, resumed_settings, written_settings
from mtrl_ray.run.policy import policy_folder
from mtrl_ray.run.preflight import preflight
from mtrl_ray.run.recipes import load as load_recipe
from mtrl_ray.run.recipes import validate
from mtrl_ray.settings.tree import Settings
from mtrl_ray.statistics.estimates import Estimate

EnvironmentLike = str | type[Environment] | Callable[..., Environment]
Overrides = Mapping[str, Any] | Sequence[str]


@dataclass(frozen=True)
class Run:
    """A run's folder, read on each access. The run may still be running."""

    folder: Path

    @cached_property
    def settings(self) -> Settings:
        """The resolved settings, as they were written. Raises CheckpointError if the folder is not a run."""
        return Settings.model_validate(written_settings(self.folder))

    @property
    def metrics(self) -> pa.Table:
        """One row per iteration, one column per metric, null if an iteration does not have it (`docs/monitoring.md`)."""
        rows = contents.read(self.folder).rows
        names = list(dict.fromkeys(name for row in rows for name in row))
        return pa.table({name: pa.array([row.get(name) for row in rows], pa.float64()) for name in names})

    @property
    def summary(self) -> dict[str, Estimate]:
        """Held-out mean scores by name: `start` and `end` of the policy, and those of the scripted agents."""
        return contents.read(self.folder).summary

    @property
    def score(self) -> Estimate | None:
        """The policy's held-out mean score at the end; None before."""
        return self.summary.get("end")

    @property
    def report(self) -> Path:
        """The report's page; written when the run ends."""
        return self.folder / "report.html"

    def policy(self, checkpoint: str | int = "newest") -> Path:
        """The policy as a Hugging Face folder: of the newest checkpoint, of checkpoint N, or of the `start`.

        Raises CheckpointError if there is none.
        """
        return policy_folder(self.folder, self.settings, str(checkpoint))

    def conversations(self, iterations: int | range | None = None) -> list[Conversation]:
        """The conversations of these iterations that the run learned from (None: all), from its journal."""
        return from_table(Journal(self.folder / "journal").read(iterations))

    def held_out(self, when: str = "end") -> list[Conversation]:
        """The held-out conversations of the `start` or the `end`; empty if it was not evaluated."""
        found = contents.read(self.folder)
        return (found.start if when == "start" else found.end) or []


def train(
    recipe: str | Path | None = None,
    overrides: Overrides = (),
    *,
    environment: EnvironmentLike | None = None,
    resume: str | Path | Run | None = None,
    fresh: bool = False,
    address: str | None = None,
    show: bool = False,
    **sections: Mapping[str, Any],
) -> Run:
    """Train a policy to the end, as `mtrl train` does.

    `recipe`: a recipe's name or a YAML file; `resume`: a run to continue in its place. `overrides`: `{"run.seed": 1}` or
    `["run.seed=1"]`; `sections`: the same by section. `environment` takes the place of the recipe's. `fresh` replaces a run of
    the same name. `address`: a running Ray cluster; by default a new one on this machine. `show`: print the progress.
    Raises ConfigurationError, CheckpointError, DataError, EngineError; KeyboardInterrupt after a stop signal, with the last
    finished iteration kept.
    """
    if (recipe is None) == (resume is None):
        raise ConfigurationError('give a recipe (train("sales")), or a run to continue (train(resume="runs/sales"))')
    if resume is not None and fresh:
        raise ConfigurationError("resume continues a run and fresh replaces one; give one of them")
    name, prepare = _shipped(environment)
    chosen = [f"environment.name={name}"] if name else []
    changed = _texts(overrides, sections)
    if resume is not None:
        settings = resumed_settings(_folder(resume), [*chosen, *changed])
    else:
        changed = [*chosen, *(["environment.options={}"] if name else []), *changed]
        settings = load_recipe(str(recipe), changed)
        preflight(settings, partial(warnings.warn, stacklevel=2))
    shown = partial(_live, settings) if show else _silent
    command = shlex.join(["mtrl", "train", str(recipe), *changed])
    if prepare is not None:
        command = f"mtrl_ray.train({str(recipe)!r}, {changed!r}, environment=…)"
    drive(settings, shown, command, resume is not None, fresh, address, prepare)
    return Run(settings.run_folder)


def load(run: str | Path) -> Run:
    """A run by its folder: settings, metrics, policy, conversations. Raises CheckpointError if it is not a run."""
    found = Run(Path(run).absolute())
    written_settings(found.folder)
    return found


def evaluate(
    run_or_model: str | Path | Run,
    environment: EnvironmentLike | None = None,
    *,
    contexts: int | None = None,
    split: str = "test",
    checkpoint: str | int = "newest",
    overrides: Overrides = (),
    address: str | None = None,
) -> Evaluation:
    """Held-out conversations of a policy, and its mean score beside the scripted agents', as `mtrl evaluate` gives them.

    `run_or_model`: a run (its `checkpoint` is taken), a model's folder, or a name of the hub; a model needs an `environment`.
    `contexts`: how many; by default `evaluation.contexts`. `overrides`: settings to change for a model.
    Raises what `train` raises.
    """
    if contexts is not None and contexts < 1:
        raise ConfigurationError(f"contexts is {contexts}; it has to be at least 1")
    name, prepare = _shipped(environment)
    run = _run(run_or_model)
    if run is not None:
        tree = written_settings(run.folder)
        if name is not None:
            tree["environment"] = {"name": name}
        settings = validate(tree, str(run.folder / CONFIG))
        model = policy_folder(run.folder, settings, str(checkpoint))
    elif name is None:
        raise ConfigurationError(
            f'{str(run_or_model)!r} is not a run; evaluating a model takes an environment: evaluate(model, "sales")'
        )
    else:
        model = Path(str(run_or_model))
        settings = load_recipe("sales", [*_texts(overrides, {}), f"environment.name={name}", "environment.options={}"])
    found = evaluate_model(settings, model, split, contexts or settings.evaluation.contexts, address, prepare)
    if run is not None and name is None:
        keep(run.folder, f"{split}-{checkpoint}", found.table)
    return found


def _run(run_or_model: str | Path | Run) -> Run | None:
    if isinstance(run_or_model, Run):
        return run_or_model
    return load(run_or_model) if (Path(run_or_model) / CONFIG).is_file() else None


def _folder(run: str | Path | Run) -> Path:
    return run.folder if isinstance(run, Run) else Path(run)


def _shipped(environment: EnvironmentLike | None) -> tuple[str | None, Callable[[], object] | None]:
    """The name that settings have for an environment, and what makes it known in other processes if a name is not enough."""
    if environment is None or isinstance(environment, str):
        return environment, None
    if not callable(environment) or (isinstance(environment, type) and not issubclass(environment, Environment)):
        raise ConfigurationError(
            f"environment is {environment!r}; give a name, a subclass of mtrl_ray.Environment, or a function that makes one"
        )
    module, name = getattr(environment, "__module__", "__main__"), getattr(environment, "__qualname__", "")
    short = name.rpartition(".")[2] or repr(environment)
    found = getattr(sys.modules.get(module), name, None)
    if isinstance(environment, type) and module != "__main__" and found is environment:
        return f"{module}:{name}", None
    try:
        cloudpickle.dumps(environment)
    except Exception as error:
        raise ConfigurationError(
            f"environment {short} cannot be sent to the workers ({error}); put it into a module that they can "
            "import, or keep what cannot be copied (locks, open files, connections) out of it"
        ) from error

    def make_known() -> None:
        give(environment)

    return give(environment), make_known


def _texts(overrides: Overrides, sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Overrides as the command line has them, `key.path=value`."""
    if isinstance(overrides, str):
        raise ConfigurationError(f"overrides are {overrides!r}; give a list of them, or a dictionary")
    given = overrides.items() if isinstance(overrides, Mapping) else ()
    texts = [f"{key}={_yaml(value)}" for key, value in given] if given else [str(text) for text in overrides]
    return [*texts, *(f"{key}={_yaml(value)}" for key, value in _leaves(sections))]


def _leaves(tree: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    for section, settings in tree.items():
        if not isinstance(settings, Mapping):
            raise ConfigurationError(f"{section} is {settings!r}; it has to be a section, such as run={{'seed': 1}}")
        yield from ((f"{section}.{key}", value) for key, value in settings.items())


def _yaml(value: Any) -> str:
    plain = str(value) if isinstance(value, Path) else value
    try:
        return (
            yaml.safe_dump(plain, default_flow_style=True, width=sys.maxsize).removesuffix("\n").removesuffix("\n...")
        )
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{value!r} is no value of a setting: {error}") from None


def _live(settings: Settings, done: int) -> AbstractContextManager[View]:
    about = settings.run
    return LiveView(about.name, about.iterations, done=done, minutes=about.minutes)


def _silent(done: int) -> AbstractContextManager[View]:
    return nullcontext(Silent())
