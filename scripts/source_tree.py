"""The modules of a tree, parsed but never imported: bindings, imports, functions, rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "qwen_local"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """One module of the package imports another."""

    source: str
    target: str
    line: int
    lazy: bool
    """True inside a function, and under `if TYPE_CHECKING`: import time never sees it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """One parsed file of the package."""

    name: str
    path: str
    """Relative to the root, with forward slashes."""
    tree: ast.Module
    text: str
    is_package: bool

    @property
    def room(self) -> str:
        """Directory directly under the package, or the module's own name at the top level."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else parts[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class FunctionSize:
    """Size of one function or method."""

    where: str
    """`path:line`"""
    name: str
    lines: int
    parameters: int
    """Every parameter, `*args` and `**kwargs` included; `self` and `cls` excluded."""


def read_package(root: Path) -> dict[str, Module]:
    """Return every module of the package under `root`, by its dotted name."""
    modules = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = list(path.relative_to(root).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        text = path.read_text("utf-8")
        modules[name] = Module(
            name=name,
            path=path.relative_to(root).as_posix(),
            tree=ast.parse(text),
            text=text,
            is_package=is_package,
        )
    return modules


def import_targets(
    node: ast.Import | ast.ImportFrom, modules: Mapping[str, Module]
) -> Iterator[tuple[str, str, str]]:
    """Yield (bound name, module, attribute or "") for each own module that a statement imports.

    `from package import name` means the submodule where there is one, else a name of the package.
    The repository has no relative imports (they would be reported as nothing here).
    """
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name in modules:
                bound = alias.asname or alias.name.split(".")[0]
                yield bound, alias.name if alias.asname else bound, ""
                if not alias.asname and "." in alias.name:
                    yield "", alias.name, ""
        return
    if node.level or node.module is None or node.module not in modules:
        return
    for alias in node.names:
        submodule = f"{node.module}.{alias.name}"
        if submodule in modules:
            yield alias.asname or alias.name, submodule, ""
        else:
            yield alias.asname or alias.name, node.module, alias.name


def imports_of(module: Module, modules: Mapping[str, Module]) -> list[Import]:
    """Return the imports of own modules, in the order of the file.

    Importing a module also runs the `__init__` of its packages; ours are empty or lazy, so that
    is not counted as an import.
    """
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for bound, target, _ in import_targets(node, modules):
                plain = isinstance(node, ast.Import) and bound == target and "." not in target
                if target != module.name and not (plain and target == PACKAGE):
                    found.append(
                        Import(source=module.name, target=target, line=node.lineno, lazy=lazy)
                    )
            return
        inside = lazy or isinstance(node, Function | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            inside = True
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(module.tree, False)
    return found


def function_sizes(module: Module) -> list[FunctionSize]:
    """Return the size of every function, nested ones and methods included."""
    found: list[FunctionSize] = []

    def visit(node: ast.AST, prefix: str, in_class: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                found.append(
                    FunctionSize(
                        where=f"{module.path}:{child.lineno}",
                        name=prefix + child.name,
                        lines=(child.end_lineno or child.lineno) - child.lineno + 1,
                        parameters=_parameters(child, in_class),
                    )
                )
                visit(child, f"{prefix}{child.name}.", False)
            elif isinstance(child, ast.ClassDef):
                visit(child, f"{prefix}{child.name}.", True)
            else:
                visit(child, prefix, in_class)

    visit(module.tree, "", False)
    return found


def _parameters(function: Function, in_class: bool) -> int:
    arguments = function.args
    count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
    count += (arguments.vararg is not None) + (arguments.kwarg is not None)
    static = any(ast.unparse(d) == "staticmethod" for d in function.decorator_list)
    return count - (in_class and not static)


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one node, each sorted.

    >>> circles({"a": {"b"}, "b": {"a", "c"}, "c": set()})
    [['a', 'b']]
    """
    reach = {node: _reachable(node, edges) for node in edges}
    found = {
        tuple(sorted({node} | {other for other in reach[node] if node in reach.get(other, set())}))
        for node in edges
    }
    return [list(circle) for circle in sorted(found) if len(circle) > 1]


def closure(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    """Return `start` and every node that it leads to."""
    return {start} | _reachable(start, edges)


def _reachable(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(edges.get(start, ()))
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += edges.get(node, ())
    return seen
