"""The import direction of the house, read from the source: savi knows none of the others, benchmarks none, reproduce all."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("savi", "benchmarks", "harness", "reproduce")
GROUND_FLOOR = "savi.base"
"""All four packages may stand on it; it stands on nothing of the project."""
MAY_KNOW = {"savi": set(), "benchmarks": set(), "harness": {"benchmarks", "savi"}, "reproduce": {"savi", "benchmarks", "harness"}}
HEAVY = {"torch", "torchvision", "transformers", "trl", "peft", "accelerate", "datasets", "lmms_eval", "decord"}
TORCH_IN_BENCHMARKS = "benchmarks/micro/pretrain/"
TORCH_FREE_AT_IMPORT = ("benchmarks", "harness", "reproduce")
FILES = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]


def imported(tree: ast.AST, *, at_import: bool = False) -> Iterator[tuple[str, int]]:
    """(module, line) of every import; `at_import` leaves out those inside functions and under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno
        yield from imported(node, at_import=at_import)


def type_only(tree: ast.AST) -> set[int]:
    """Lines under `if TYPE_CHECKING:`."""
    out: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            out |= {line for child in node.body for line in range(child.lineno, (child.end_lineno or child.lineno) + 1)}
    return out


def wrong_imports(path: Path, text: str) -> list[str]:
    """What a file may not import, in words."""
    tree = ast.parse(text)
    package, name = path.parts[0], path.as_posix()
    types = type_only(tree)
    out = []
    for module, line in imported(tree):
        top, on_ground = module.split(".")[0], f"{module}.".startswith(f"{GROUND_FLOOR}.")
        if name.startswith("savi/base/") and top in PACKAGES and not on_ground:
            out.append(f"{name}:{line} imports {module}: {GROUND_FLOOR} imports nothing of the project")
        if on_ground:
            continue
        if top in PACKAGES and top != package and top not in MAY_KNOW[package]:
            out.append(f"{name}:{line} imports {module}")
        if package == "harness" and top == "savi" and path.name != "lmms_model.py" and line not in types:
            out.append(f"{name}:{line} imports {module}: the harness knows savi through lmms_model.py and savi.base only")
        if package == "benchmarks" and top in HEAVY - {"datasets"} and not name.startswith(TORCH_IN_BENCHMARKS):
            out.append(f"{name}:{line} imports {module}: only {TORCH_IN_BENCHMARKS}*.py may")
    if (
        (package in TORCH_FREE_AT_IMPORT or name.startswith("savi/base/"))
        and path.name != "lmms_model.py"
        and not name.startswith(TORCH_IN_BENCHMARKS)
    ):
        out += [f"{name}:{line} imports {m} when it is imported" for m, line in imported(tree, at_import=True) if m.split(".")[0] in HEAVY]
    return out


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    assert wrong_imports(path.relative_to(ROOT), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("savi/x.py", "import harness.gate.gate"),
        ("savi/base/x.py", "def f():\n    from savi.video.frames import VideoError"),
        ("savi/base/x.py", "import torch"),
        ("benchmarks/x.py", "import savi.baseline"),
        ("savi/x.py", "def f():\n    from benchmarks.catalog import CATALOG"),
        ("benchmarks/x.py", "from savi import frames"),
        ("benchmarks/x.py", "def f():\n    import torch"),
        ("harness/gate.py", "def f():\n    import savi.engine.video_lm"),
        ("harness/gate.py", "import reproduce"),
        ("harness/gate.py", "import torch"),
        ("reproduce/x.py", "class A:\n    import lmms_eval"),
    ],
)
def test_a_wrong_import_is_seen(path: str, text: str) -> None:
    assert wrong_imports(Path(path), text)


@pytest.mark.parametrize("module", sorted(f"savi.base.{p.stem}" for p in (ROOT / "savi" / "base").glob("[!_]*.py")))
def test_the_ground_floor_brings_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(', '.join(sorted({HEAVY!r} & set(sys.modules))) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(texts: dict[str, str]) -> dict[str, set[str]]:
    """Module -> the project's modules it imports, at its top or inside a function; imports for types alone are left out."""
    graph: dict[str, set[str]] = {}
    for name, text in texts.items():
        tree = ast.parse(text)
        types = type_only(tree)
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import) and node.lineno not in types:
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module and node.lineno not in types:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= inside & texts.keys() or {node.module}
        graph[name] = (found & texts.keys()) - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of names that reach each other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        todo = [*graph[start]]
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph.get(name, ())
        reach[start] = seen
    found = {tuple(sorted({a} | {b for b in reach[a] if a in reach.get(b, ())})) for a in graph if a in reach[a]}
    return [list(group) for group in sorted(found)]


GRAPH = import_graph({module_name(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in FILES})


def test_no_import_circle() -> None:
    """Function-local imports count: a circle hidden in a function is one all the same."""
    assert circles(GRAPH) == []


def test_a_hidden_circle_is_seen() -> None:
    texts = {"a.x": "import a.y", "a.y": "def f():\n    from a import z", "a.z": "def g():\n    import a.x", "a.w": "import a.x"}
    assert circles(import_graph(texts)) == [["a.x", "a.y", "a.z"]]
    for_types = {"a.x": "import a.y", "a.y": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a.x"}
    assert circles(import_graph(for_types)) == []


def room_of(module: str) -> str:
    """The room a module stands in: `savi.video.frames` -> `savi.video`; a package's own modules stand in none, they look into all."""
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 else ""


COMMANDS = ("__main__", "cli")
"""Modules that put commands together may look into any room."""


def test_no_circle_of_rooms() -> None:
    """The rooms of the house import in one direction."""
    rooms: dict[str, set[str]] = {}
    for name, targets in GRAPH.items():
        if (room := room_of(name)) and name.rpartition(".")[2] not in COMMANDS:
            rooms.setdefault(room, set()).update({room_of(t) for t in targets} - {room, ""})
    assert circles(rooms) == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [p.relative_to(ROOT).as_posix() for p in FILES if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]
    assert silent == []


FORBIDDEN_CALLS = {"eval", "exec"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_dangerous(path: Path) -> None:
    """No remote code, pickles, shells or unfiltered archives."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if (
            name in FORBIDDEN_CALLS
            or name.startswith("pickle.")
            or keywords.get("trust_remote_code") == "True"
            or keywords.get("shell") == "True"
        ):
            found.append(f"{node.lineno}: {name}")
        if name == "torch.load" and keywords.get("weights_only") != "True":
            found.append(f"{node.lineno}: torch.load without weights_only=True")
        if name.endswith(".extractall") and "filter" not in keywords:
            found.append(f"{node.lineno}: extractall without a filter")
    assert found == []
