"""The versioned weight store: an actor that knows which object has which version.

1. One packed copy per version lies in the object store; the store keeps references, never bytes. The copies are owned by
   the process that published them (the driver), so a learner's death takes none of them away.
2. Samplers pull: `get` gives the newest version at or above the one asked for. There are no process groups.
3. The model's other files (configuration, tokenizer) travel the same way, for nodes that do not see the driver's disk.
4. A run that goes back to a checkpoint publishes versions again: `rewind` forgets them and begins a new epoch, and what a
   sampler has of another epoch is pulled anew, whatever its number.
"""

import shutil
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from mtrl_ray.errors import ConfigurationError, EngineError

if TYPE_CHECKING:
    from mtrl_ray.processes.refs import Ref
    from mtrl_ray.weights.packed import PackedWeights


class WeightStore:
    """Wrapped as a Ray actor by `start_store`. References are passed inside lists, so that Ray does not resolve them."""

    def __init__(self, name: str, keep: int = 2) -> None:
        self._name = name
        self._keep = keep
        self._versions: dict[int, list[Ref[PackedWeights]]] = {}
        self._epoch = 0
        self._files: dict[str, bytes] | None = None

    def publish(self, version: int, reference: "list[Ref[PackedWeights]]") -> None:
        """Make `[ref of PackedWeights]` the newest version; older ones beyond `keep` are let go."""
        if self._versions and version <= max(self._versions):
            raise EngineError(f"weights of version {version} were published after version {max(self._versions)}")
        self._versions[version] = reference
        for old in sorted(self._versions)[: -self._keep]:
            del self._versions[old]

    def get(self, at_least: int) -> "tuple[int, list[Ref[PackedWeights]]]":
        """The newest (version, [ref]). Raises EngineError if it is older than asked for."""
        newest = max(self._versions, default=-1)
        if newest < at_least:
            raise EngineError(f"weights of version {at_least} were asked for; the newest published are {newest}")
        return newest, self._versions[newest]

    def rewind(self) -> None:
        """Forget every version; what is published from now on are other weights, whatever their numbers."""
        self._versions.clear()
        self._epoch += 1

    def epoch(self) -> int:
        """How often versions were forgotten: a version's number names its weights within one epoch only."""
        return self._epoch

    def name(self) -> str:
        """The actor's name, by which workers find it."""
        return self._name

    def newest(self) -> int:
        """The newest version, -1 where nothing has been published."""
        return max(self._versions, default=-1)

    def keep_files(self, files: dict[str, bytes] | None) -> None:
        """Remember a model folder's files (None: the model is a name of the hub)."""
        self._files = files

    def files(self) -> dict[str, bytes] | None:
        """What `keep_files` was given."""
        return self._files


def start_store(**options: Any) -> Any:
    """The handle of a new store, an actor with a name of its own; it ends when the last handle goes.

    Workers get its name instead of the handle, which Ray does not keep for an actor that it starts again.
    """
    name = f"mtrl-weights-{uuid.uuid4().hex}"
    return ray.remote(WeightStore).options(num_cpus=0, name=name, **options).remote(name)


def read_files(path: str) -> dict[str, bytes] | None:
    """A local model folder's files, weights included, by name; None if `path` is a name of the hub."""
    folder = Path(path)
    if not folder.is_dir():
        return None
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"model folder {path!r} has no config.json; give a Hugging Face model folder")
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}


def materialise(path: str, files: dict[str, bytes] | None) -> str:
    """`path` where it can be read on this node or is a name of the hub, else a temporary folder with its files."""
    if files is None or Path(path).is_dir():
        return path
    folder = Path(tempfile.mkdtemp(prefix="mtrl-model-"))
    try:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise EngineError(f"the model's files could not be written to {folder}: {error}") from error
    return str(folder)
