"""The versioned weight store: an actor that knows which object has which version.

- One packed copy per version lies in the object store; the store keeps references, never bytes. The process that published the
  copies (the driver) owns them, so a learner's death takes none of them away.
- Samplers pull: `get` gives the newest version at or above the one asked for. There are no process groups.
- The model's other files (configuration, tokenizer) travel the same way, for nodes that do not see the driver's disk.
- A run that goes back to a checkpoint publishes versions again. `rewind` forgets them and begins a new epoch; what a sampler
  has of another epoch is pulled anew, whatever its number.
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
            raise EngineError(
                f"weights of version {at_least} were requested, but the newest published version is {newest}"
            )
        return newest, self._versions[newest]

    def rewind(self) -> None:
        """Remove every version and start a new epoch; its version numbers are independent of earlier ones."""
        self._versions.clear()
        self._epoch += 1

    def epoch(self) -> int:
        """Number of calls of `rewind`; a version number identifies weights only within an epoch."""
        return self._epoch

    def name(self) -> str:
        """The actor's name, for `ray.get_actor` in workers."""
        return self._name

    def newest(self) -> int:
        """The newest version, -1 if none was published."""
        return max(self._versions, default=-1)

    def keep_files(self, files: dict[str, bytes] | None) -> None:
        """Store a model folder's files (None: the model is a hub name)."""
        self._files = files

    def files(self) -> dict[str, bytes] | None:
        """The files that `keep_files` stored."""
        return self._files


def start_store(**options: Any) -> Any:
    """Start a store as a named actor and return its handle; the actor ends with its last handle.

    Workers get its name instead of the handle, because Ray loses handles in restarted actors.
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
    """`path` if it is readable on this node or a hub name, otherwise a temporary folder with `files`."""
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
