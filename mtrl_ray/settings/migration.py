"""Settings of an earlier version, brought to this one.

1. A run folder's `config.yaml` says under `version` which version wrote it; version 0.1 wrote none.
2. A setting that was renamed gets its new name. One that is gone is left out if the run computes the same without it, with a
   note if it had been changed; otherwise the run is refused with a sentence that says what to do.
3. A recipe is read by one version only: an old name in it is refused with a sentence that gives the new one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mtrl_ray.errors import CheckpointError, ConfigurationError

VERSION = "version"
"""The key in `config.yaml`."""
MINIBATCHES = "minibatches"
"""A setting of several sections in version 0.1."""


@dataclass(frozen=True)
class Gone:
    """A setting that is no more. `now`: what holds instead, as a clause; `equal`: values that mean the same, None for any;
    `default`: what it had been, anything else is worth a note (`...`: nothing is)."""

    now: str
    default: Any = ...
    equal: tuple[Any, ...] | None = None


RENAMED = {
    "rollout.workers.having_seconds": "rollout.workers.scale_up_seconds",
}
RENAMED_VALUES = {"algorithm.improvement.aggregation": {"response": "turn"}}
GONE = {
    "run.recoveries": Gone("a run gives up after 20 recoveries in a row", 20),
    "model.width": Gone("the tiny model is 128 wide", 128, (128,)),
    "model.warm_start.seconds": Gone("it ends by model.warm_start.probe, at model.warm_start.steps at the latest"),
    "model.warm_start.batch_conversations": Gone("a step has 16 conversations"),
    "model.warm_start.learning_rate": Gone("its learning rate is 3e-3"),
    "rollout.workers.keeping_seconds": Gone("it is scale_up_seconds less half a second"),
    "rollout.workers.scale_down_seconds": Gone("it is scale_up_seconds less half a second"),
    "rollout.exact": Gone(
        "runs are exact if rollout.workers is a number and users are scripted; {min: 2, max: 2} has smaller chunks",
        None,
        (None,),
    ),
    "rollout.preload": Gone("processes without a GPU are forks", None),
    "rollout.kv_cache_gib": Gone("the cache follows from rollout.concurrency and model.context_length", 0.25),
    "rollout.user_threads": Gone("as many users are asked at a time as rollout.concurrency allows", 16),
    "replay.max_conversations": Gone("replay.max_gib bounds what is in memory", 20_000),
    "learner.device": Gone("models are on a GPU if learner.gpus is above 0", "auto"),
    "learner.preload": Gone("processes without a GPU are forks", None),
    "monitoring.live": Gone("the table is shown in a terminal only; pipe the output for plain lines", True),
    "monitoring.tensorboard": Gone("TensorBoard's files are always written", True),
    "monitoring.ray_metrics": Gone("metrics are Ray gauges in every run", True),
    "algorithm.improvement.temperature": Gone("rollout.temperature holds for both"),
    "algorithm.improvement.mixture": Gone("algorithm.tau decides"),
    "algorithm.improvement.value_clip": Gone("values are not clipped", None, (None,)),
    "algorithm.advantages.temperature": Gone("rollout.temperature holds for both"),
    "algorithm.advantages.alpha": Gone("algorithm.alpha decides"),
    "algorithm.q.evaluated_conversations": Gone("Q is judged on 512 conversations", 512),
    "algorithm.q.weight_decay": Gone("weights do not decay", 0.0, (0.0,)),
    "algorithm.improvement.kl_stop": Gone("improvement.kl_limit shortens what went too far", None, (None,)),
    "algorithm.rewards.concentration": Gone("it is 1", 1.0, (1.0,)),
}


def migrate(tree: dict[str, Any], source: str, version: str) -> list[str]:
    """Bring the plain tree of an existing run to this version, in place; notes about what was left out.

    `source`: the file, named in sentences; `version`: this one. Raises CheckpointError if the run cannot go on with it.
    """
    made = str(tree.pop(VERSION, "0.1"))
    if _numbers(made) > _numbers(version):
        raise CheckpointError(
            f"{source} was written by mtrl-ray {made}, this is {version}; continue the run with that version or a newer one"
        )
    notes = []
    for key in list(_old(tree)):
        value = _pop(tree, key)
        if key in RENAMED:
            _put(tree, RENAMED[key], value)
            continue
        gone = GONE[key]
        if gone.equal is not None and value not in gone.equal:
            raise CheckpointError(
                f"{source}: {key} is {value!r}, and version {version} has no such setting: {gone.now}; continue the run "
                f"with version {made}, or delete that line to go on so"
            )
        if gone.default is not ... and value != gone.default:
            notes.append(f"{key} ({value!r}) is no setting any more: {gone.now}")
    algorithm = tree.get("algorithm")
    if _numbers(made) < (0, 2) and isinstance(algorithm, dict) and algorithm.get("name") == "iterative_ppo":
        algorithm.setdefault("critic", "network")
    notes += _sized(algorithm)
    for key, values in RENAMED_VALUES.items():
        held = _get(tree, key)
        if isinstance(held, str) and held in values:
            _put(tree, key, values[held])
    if tree.get("monitoring") == {}:
        del tree["monitoring"]
    return notes


def _sized(algorithm: Any) -> list[str]:
    """`minibatches`, the number of steps of a pass, becomes `minibatch_conversations`, the size of one, in all sections of the
    algorithm; notes about it."""
    notes = []
    for section, conversations in _sections(algorithm):
        if MINIBATCHES in section:
            number = int(section.pop(MINIBATCHES))
            size = max(1, -(-conversations // number))
            section["minibatch_conversations"] = size
            notes.append(f"{MINIBATCHES} ({number} per pass) is now minibatch_conversations ({size} per step)")
    return notes


def _sections(node: Any, conversations: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """The section and all below it, each with the number of conversations (or pairs) that are drawn for it."""
    if not isinstance(node, dict):
        return
    contexts, samples = node.get("contexts"), node.get("samples", 1)
    if isinstance(contexts, int) and isinstance(samples, int):
        conversations = contexts * samples
    yield node, conversations
    for value in node.values():
        yield from _sections(value, conversations)


def refuse_old(tree: dict[str, Any], source: str) -> None:
    """Raises ConfigurationError for the first setting of an earlier version in a recipe or an override."""
    for key in _old(tree):
        now = f"it is called {RENAMED[key]} now" if key in RENAMED else f"leave it out: {GONE[key].now}"
        raise ConfigurationError(f"{source}: {key} is a setting of an earlier version; {now}")
    if any(MINIBATCHES in section for section, _ in _sections(_get(tree, "algorithm"))):
        raise ConfigurationError(
            f"{source}: {MINIBATCHES} is a setting of an earlier version; minibatch_conversations gives the size "
            "of a step, not their number"
        )


def _old(tree: dict[str, Any]) -> Iterator[str]:
    """Keys of earlier versions that the tree has."""
    for key in (*RENAMED, *GONE):
        section, _, name = key.rpartition(".")
        node = _get(tree, section)
        if isinstance(node, dict) and name in node:
            yield key


def _get(tree: dict[str, Any], key: str) -> Any:
    node: Any = tree
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _pop(tree: dict[str, Any], key: str) -> Any:
    section, _, name = key.rpartition(".")
    return _get(tree, section).pop(name)


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
    node[name] = value


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers: versions that differ behind them have the same settings."""
    return tuple(int(part) if part.isdecimal() else 0 for part in version.split(".")[:2])
