"""Rooms depend downwards only, and modules import one another in no circle.

Every import in the text of a module counts: at its top, inside a function, for types alone (`TYPE_CHECKING`), and
`import_module("…")` of a literal. Names in the registries (`package.module:Class`) are no imports: that is what they are for.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "mtrl_ray": ROOT / "mtrl_ray",
    "mtrl_envs": ROOT / "envs" / "mtrl_envs",
    "mtrl_cluster": ROOT / "cluster" / "mtrl_cluster",
}

ORDER = (
    "errors",
    "mtrl_cluster",
    "settings",
    "dialogue",
    "statistics",
    "objectives",
    "tabular",
    "mtrl_envs",
    "models",
    "processes",
    "weights",
    "replay",
    "monitoring",
    "rollout",
    "learner",
    "system",
    "feedback",
    "evaluation",
    "algorithms",
    "run",
    "bench",
    "chaos",
    "studies",
    "mtrl_ray",
    "doctor",
    "commands",
    "cli",
    "__main__",
)
"""Rooms from the ground up; docs/architecture.md draws them. `mtrl_ray` is the public interface, `mtrl_ray/__init__.py`."""
LOOSE = {"__init__.py", "__main__.py", "cli.py", "errors.py"}
"""The only modules that lie in `mtrl_ray/` itself."""


def name_of(path: Path, package: str) -> str:
    """The dotted name of a module of a package."""
    parts = [package, *path.relative_to(PACKAGES[package]).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path, package): path for package, folder in PACKAGES.items() for path in folder.rglob("*.py")}


def imported(source: str, module: str, is_package: bool, known: set[str]) -> set[str]:
    """The modules among `known` that the text of `module` imports anywhere, itself left out."""
    return {name for name in _named(ast.parse(source), module, is_package, known) if name in known and name != module}


def _named(tree: ast.AST, module: str, is_package: bool, known: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in known else base
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            yield from (given.value for given in node.args if isinstance(given, ast.Constant) and given.value in known)


GRAPH = {
    module: imported(path.read_text(), module, path.name == "__init__.py", set(MODULES))
    for module, path in MODULES.items()
}


def room_of(module: str) -> str:
    """The room of a module."""
    parts = module.split(".")
    if parts[0] != "mtrl_ray" or len(parts) == 1:
        return parts[0]
    inner = ".".join(parts[1:3])
    return inner if inner in ORDER else parts[1]


def upwards(graph: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Imports of a room that stands above the importer's."""
    height = {room: place for place, room in enumerate(ORDER)}
    edges = ((module, target) for module, targets in graph.items() for target in targets)
    return {edge for edge in edges if height[room_of(edge[0])] < height[room_of(edge[1])]}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, the first found; empty if there is none."""
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            if found := walk(target, [*way, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := walk(module, []))), [])


def test_every_room_has_its_place() -> None:
    assert {room_of(module) for module in MODULES} - set(ORDER) == set()
    assert {path.name for path in PACKAGES["mtrl_ray"].glob("*.py")} == LOOSE


def test_rooms_depend_downwards_only() -> None:
    assert sorted(upwards(GRAPH)) == [], "import from a room below, or draw a better order in docs/architecture.md"


def test_modules_import_one_another_in_no_circle() -> None:
    assert circle(GRAPH) == []


def test_what_the_architecture_names_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    paths = {path for path in re.findall(r"`([\w./]+)`", page) if path.endswith((".py", "/"))}
    places = (ROOT, ROOT / "mtrl_ray", ROOT / "mtrl_ray" / "rollout", ROOT / "mtrl_ray" / "algorithms")
    assert len(paths) > 30
    assert sorted(path for path in paths if not any((place / path).exists() for place in places)) == []
    rooms = {room for room in ORDER if room not in ("mtrl_ray", "__main__")}
    assert sorted(room for room in rooms if not re.search(rf"\b{room}(/|\.py|  )", page)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import mtrl_ray.run.trainer",
        "from mtrl_ray.run import trainer",
        "from mtrl_ray.run.trainer import Trainer",
        "from ..run import trainer",
        "from ..run.trainer import Trainer",
        "def late():\n    from mtrl_ray.run.trainer import Trainer",
        "if TYPE_CHECKING:\n    from mtrl_ray.run.trainer import Trainer",
        "trainer = importlib.import_module('mtrl_ray.run.trainer')",
    ],
)
def test_an_import_upwards_is_seen_however_it_is_written(source: str) -> None:
    module, target = "mtrl_ray.replay.buffer", "mtrl_ray.run.trainer"
    found = imported(source, module, False, {module, "mtrl_ray.run", target})
    assert found == {target}
    assert upwards({module: found}) == {(module, target)}
    assert upwards({target: {module}}) == set()


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
