"""Imports point one way, as docs/architecture.md says, and never in a circle."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ARCHITECTURE = ROOT / "docs" / "architecture.md"


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def imports_of(root, *, in_functions=True):
    """Module -> the modules of the package it imports, TYPE_CHECKING included."""
    files = {_name(path, root): path for path in (root / "ewq").rglob("*.py")}
    return {name: _imported(path, files, in_functions) - {name} for name, path in files.items()}


def _name(path, root):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _nodes(node, in_functions):
    for child in ast.iter_child_nodes(node):
        if in_functions or not isinstance(child, FUNCTIONS):
            yield child
            yield from _nodes(child, in_functions)


def _imported(path, modules, in_functions):
    found = set()
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), in_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            full = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in full.values()}
    return found & modules.keys()


def circle_in(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def layers():
    """Room -> its layer, the lowest 0, read from the table of the architecture."""
    text = ARCHITECTURE.read_text(encoding="utf-8")
    table = text.split("| layer |")[1].split("\n\n")[0].splitlines()[2:]
    rows = [re.findall(r"`([\w/.]+)`", row.split("|")[2]) for row in table]
    return {
        room.removesuffix(".py").strip("/"): depth for depth, row in enumerate(rows) for room in row
    }


def room_of(module):
    parts = module.split(".")[1:]
    return parts[0] if parts else "__init__"


def against_the_order(graph, order):
    """Imports of a higher layer, or of another room in the same one above the vocabulary."""
    wrong = []
    for module, imported in graph.items():
        here = room_of(module)
        for other in imported:
            there = room_of(other)
            neighbours = order[there] == order[here] > 0 and there != here
            if order[there] > order[here] or neighbours:
                wrong.append(f"{module} imports {other}")
    return wrong


def test_no_module_imports_itself_through_others():
    assert circle_in(imports_of(ROOT, in_functions=False)) is None


def test_imports_follow_the_documented_layers():
    assert against_the_order(imports_of(ROOT), layers()) == []


def test_every_room_has_one_layer():
    assert {room_of(module) for module in imports_of(ROOT)} == set(layers())


@pytest.fixture
def package(tmp_path):
    """A package of two rooms; a test writes what they import."""

    def write(**modules):
        for name, text in modules.items():
            path = tmp_path / "ewq" / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return imports_of(tmp_path)

    return write


@pytest.mark.parametrize(
    "text",
    [
        "from ewq.upper.a import A",
        "from ewq.upper import a",
        "if TYPE_CHECKING:\n    import ewq.upper.a",
        "def f():\n    from ewq.upper.a import A",
    ],
    ids=["name", "module", "type checking", "function"],
)
def test_a_planted_import_is_found(package, text):
    graph = package(upper__a="from ewq.lower.b import B", lower__b=text)
    assert set(circle_in(graph)) == {"ewq.upper.a", "ewq.lower.b"}
    assert against_the_order(graph, {"lower": 1, "upper": 2}) == ["ewq.lower.b imports ewq.upper.a"]
    assert len(against_the_order(graph, {"lower": 1, "upper": 1})) == 2


def test_what_tools_import_of_the_package_exists():
    for path in (ROOT / "tools").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ewq"):
                module = import_module(node.module)
                for each in node.names:
                    is_there = hasattr(module, each.name) or find_spec(f"{node.module}.{each.name}")
                    assert is_there, f"{path.name}: {node.module} has no {each.name}"
