"""The plan of the house, as far as import-linter does not see it."""

import ast
from pathlib import Path

import pytest

import curvprobe as cp

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
FOLDERS = ("src", "tests", "benchmarks", "examples", "acceptance", "endurance")
FILES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]

LONGER = {"analyze": 60, "assemble": 45, "_seen": 50, "demo": 60, "run": 65, "plan": 55, "surface": 50}
"""Lines of a function that may have more than 40: the list of stages, of a result's fields, of a command's options."""


def lines_of(function: ast.FunctionDef) -> int:
    """Without its docstring."""
    first = function.body[0]
    doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    length = function.end_lineno - function.lineno + 1
    return length - (first.end_lineno - first.lineno + 1 if doc else 0)


def test_no_file_is_longer_than_400_lines():
    assert [path.name for path in FILES if len(path.read_text().splitlines()) > 400] == []


def test_no_function_is_longer_than_40_lines():
    found = [
        (path.name, node.name, lines_of(node))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and lines_of(node) > LONGER.get(node.name, 40)
    ]
    assert found == []


def own_names(tree: ast.Module) -> set[str]:
    """Private attributes that a module's own classes define or set."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


FOREIGN = {
    "_SpectralNorm",
    "_forward_pre_hooks",
    "_dispatch",
    "_compiled_call_impl",
    "_orig_mod",
    "_fields",
    "_DropoutNd",
    "_BatchNorm",
    "_pytree",
    "_version",
    "_base",
    "_C",
    "_functorch",
    "_set_vmap_fallback_warning_enabled",
}
"""Private names of torch and of Python that are looked at."""


def test_no_private_name_is_read_from_another_module():
    found = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        own = own_names(tree) | FOREIGN
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                found += [] if node.attr in own else [(path.name, node.attr)]
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("curvprobe"):
                names = (alias.name for alias in node.names)
                found += [(path.name, name) for name in names if name.startswith("_") and name != "__version__"]
    assert found == []


@pytest.mark.parametrize("room", sorted(p.parent.name for p in (ROOT / "src" / "curvprobe").glob("*/__init__.py")))
def test_every_room_says_what_lives_there_and_who_may_import_it(room):
    text = ast.get_docstring(ast.parse((ROOT / "src" / "curvprobe" / room / "__init__.py").read_text()))
    assert "mport" in text.split("\n\n")[1]


def test_tests_mirror_the_rooms():
    rooms = {p.parent.name for p in (ROOT / "src" / "curvprobe").glob("*/__init__.py")}
    folders = {p.parent.name for p in (ROOT / "tests").glob("*/__init__.py")}
    assert rooms <= folders


def test_every_public_name_is_there_and_documented():
    for name in cp.__all__:
        assert name == "__version__" or (getattr(cp, name).__doc__ or "").strip(), name


def test_no_public_name_is_shadowed_by_a_module_of_the_package():
    shadowed = {path.stem for path in (ROOT / "src" / "curvprobe").glob("*.py")} | {
        path.parent.name for path in (ROOT / "src" / "curvprobe").glob("*/__init__.py")
    }
    assert shadowed & set(cp.__all__) == {"losses", "plots"}
