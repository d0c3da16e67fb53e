"""Rules about the seam between engines and shared code, checked on the syntax of the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "qwen_local"
ENGINE_MODULES = ("qwen_local.backends.mlx", "qwen_local.backends.cuda")


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
