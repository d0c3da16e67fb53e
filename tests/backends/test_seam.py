"""Rules about the seam between engines and shared code, checked on the syntax of the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "qwen_local"
ENGINES = {"mlx", "cuda"}
ENGINE_MODULES = ("qwen_local.backends.mlx", "qwen_local.backends.cuda")
ABOUT_LAYOUTS = {
    "cards/card.py": "a card describes files: their layout, and the library that reads them",
    "cli/export.py": "--to mlx is a layout",
    "export/export.py": "--to mlx is a layout",
}
"""Files outside backends/ that compare with the name of a layout, and not of an engine."""


def questions(source: str) -> list[int]:
    """Lines that compare something with the name of an engine."""
    return sorted({node.lineno for node in _asking(ast.parse(source))})


def _asking(tree: ast.Module) -> Iterator[ast.expr | ast.pattern]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            if any(_names(side) for side in (node.left, *node.comparators)):
                yield node
        elif isinstance(node, ast.MatchValue) and _names(node.value):
            yield node


def _names(node: ast.expr) -> bool:
    """True for the name of an engine, alone or in a list of names."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(_names(element) for element in node.elts)
    return isinstance(node, ast.Constant) and node.value in ENGINES


def imported(source: str) -> Iterator[str]:
    """Full names of the modules that a file imports, within functions as well."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def files(*, outside: str) -> list[tuple[str, str]]:
    """(path within the package, source) of every file outside one folder."""
    found = [(path.relative_to(PACKAGE).as_posix(), path) for path in PACKAGE.rglob("*.py")]
    assert len(found) > 100
    return sorted((n, p.read_text("utf-8")) for n, p in found if not n.startswith(outside))


def test_shared_code_does_not_ask_which_engine_it_runs_on() -> None:
    asking = {name: questions(source) for name, source in files(outside="backends/")}
    found = {name: lines for name, lines in asking.items() if lines}
    assert sorted(found) == sorted(ABOUT_LAYOUTS), found


def test_only_one_module_imports_an_engine() -> None:
    found = [
        f"{name}: {module}"
        for name, source in files(outside="backends/")
        for module in imported(source)
        if module.startswith(ENGINE_MODULES)
    ]
    assert found == []


def test_backends_import_nothing_that_is_built_on_them() -> None:
    below = {"rows", "adapters", "models", "job", "files", "errors", "backends"}
    found = [
        f"{path.name}: {module}"
        for path in (PACKAGE / "backends").rglob("*.py")
        for module in imported(path.read_text("utf-8"))
        if module.startswith("qwen_local.") and module.split(".")[1] not in below
    ]
    assert found == []


@pytest.mark.parametrize(
    "snippet",
    [
        'if engine == "mlx": pass',
        'x = choice.backend != "cuda" and gpu',
        'if name in ("mlx", "other"): pass',
        'match engine:\n    case "cuda" | None: pass',
    ],
)
def test_a_question_is_found_whatever_it_looks_like(snippet: str) -> None:
    assert questions(snippet)


@pytest.mark.parametrize("snippet", ['x = {"mlx": 1}["mlx"]', 'open("mlx")', 'device == "gpu"'])
def test_what_only_looks_like_a_question_is_not(snippet: str) -> None:
    assert questions(snippet) == []
