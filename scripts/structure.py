"""Measure the structure of a tree: `python -m scripts.structure [--root DIR] [--json]`.

By static parse alone, so it also measures a tree that this Python could not import. `--root` is a
checkout: compare two commits by measuring two checkouts with one program.

The way from a job file to an adapter is measured in five ways:

- `import_closure`: modules that the command's module leads to by imports, lazy ones included;
- `reached`: modules with a function that one run may call (see call_graph.py for what resolves);
- `spine`: those of them on a way to the writing of the adapter, that is with a function that both
  is reached from the entry and leads to `write_peft` or `peft_files`;
- `beside`: the spine, and every module that a function on it calls by itself: what a reader opens
  who looks up each call of the main path once;
- `shortest`: modules on the shortest way there: what a reader must open at the least.

Modules of another command's path (`CUTS`) are not entered: a dry run, a resumed run, restarts.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.call_graph import CallGraph, Node
from scripts.glossary import count_words
from scripts.source_tree import (
    PACKAGE,
    FunctionSize,
    Import,
    Module,
    circles,
    closure,
    function_sizes,
    imports_of,
    read_package,
)

ROOT = Path(__file__).parents[1]
ENTRY: Node = (f"{PACKAGE}.cli.train", "train")
SINKS = ("write_peft", "peft_files")
CUTS = frozenset(
    f"{PACKAGE}.{name}"
    for name in (
        *("cli.plan", "training.resume"),
        *("training.restart", "training.child"),  # now
        *("training.supervise", "training.supervised"),  # before
    )
)
LONG = 60
"""Lines of a function above which it is listed."""
WIDE = 7
"""Parameters of a function above which it is listed."""
ENGINES = {"mlx", "cuda"}

_FLOORS: tuple[tuple[str, ...], ...] = (
    ("files", "errors", PACKAGE),
    ("console",),
    ("rows", "adapters", "models", "job", "datasets", "recipes", "embedded"),
    ("backends", "runs"),
    ("resolve",),
    (
        *("training", "distillation", "evaluation", "inference", "export", "reports"),
        *("cards", "inspection"),
    ),
    ("cli", "serving", "dashboard", "demo", "__main__"),
)
FLOOR: Mapping[str, int] = {room: floor for floor, rooms in enumerate(_FLOORS) for room in rooms}
"""Room -> floor; a room imports its own floor and lower ones. An unlisted room has no floor."""
ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("job_file", "job_faults", "presets"), "job"),
    **dict.fromkeys(("talk", "signals"), "console"),
}
"""Modules at the top level of older trees -> the room that they are now in."""
TOOLS = f"{PACKAGE}.embedded.make"
"""Makes the embedded model: a program in the package's folder, above all rooms."""


def measure(root: Path = ROOT) -> dict[str, Any]:
    """Return every figure of a tree, ready for JSON."""
    modules = read_package(root)
    return {
        "path": path_figures(modules),
        **module_figures(modules),
        "lines": {
            folder: line_counts(root / folder)
            for folder in (PACKAGE, "tests", "benchmarks", "scripts")
        },
        "words": {word: files for word, files in count_words(root).items() if files},
    }


def module_figures(modules: Mapping[str, Module]) -> dict[str, Any]:
    """Return the figures of functions and imports."""
    imports = [one for module in modules.values() for one in imports_of(module, modules)]
    sizes = [size for module in modules.values() for size in function_sizes(module)]
    by_importer = _by_importer(modules, imports)
    most = max(by_importer, key=lambda name: len(by_importer[name]))
    longest = max(sizes, key=lambda size: size.lines)
    widest = max(sizes, key=lambda size: size.parameters)
    return {
        "longest_function": _long(longest),
        "functions_over_60_lines": [_long(s) for s in _descending(sizes, "lines", LONG)],
        "most_imports": {"module": most, "imports": len(by_importer[most])},
        "widest_function": _wide(widest),
        "functions_over_7_parameters": [_wide(s) for s in _descending(sizes, "parameters", WIDE)],
        "engine_comparisons": engine_comparisons(modules),
        "module_circles": module_circles(modules, imports),
        "room_circles": room_circles(imports),
        "imports_in_room_circles": imports_in_room_circles(imports),
        "upward_imports": upward_imports(imports),
    }


def _by_importer(modules: Mapping[str, Module], imports: Iterable[Import]) -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {name: set() for name in modules}
    for one in imports:
        edges[one.source].add(one.target)
    return edges


def path_figures(modules: Mapping[str, Module]) -> dict[str, Any]:
    """Return the figures of the way from `train job.yaml` to the adapter on disk."""
    imports = (one for module in modules.values() for one in imports_of(module, modules))
    by_importer = _by_importer(modules, imports)
    edges = CallGraph(modules, CUTS).edges_from(ENTRY)
    sinks = {node for node in edges if node[1] in SINKS}
    callers: dict[Node, set[Node]] = {}
    for caller, callees in edges.items():
        for callee in callees:
            callers.setdefault(callee, set()).add(caller)
    leading = set(sinks)
    waiting = list(sinks)
    while waiting:
        for caller in callers.get(waiting.pop(), set()) - leading:
            leading.add(caller)
            waiting.append(caller)
    shortest = _shortest(edges, sinks)
    beside = {callee for node in leading for callee in edges[node]}
    return {
        "entry": ".".join(ENTRY),
        "import_closure": len(closure(ENTRY[0], by_importer)),
        "reached": sorted({module for module, _ in edges}),
        "spine": sorted({module for module, _ in leading}),
        "beside": sorted({module for module, _ in leading | beside}),
        "shortest": list(dict.fromkeys(module for module, _ in shortest)),
        "shortest_calls": [".".join(node) for node in shortest],
    }


def _shortest(edges: Mapping[Node, set[Node]], sinks: set[Node]) -> list[Node]:
    before: dict[Node, Node | None] = {ENTRY: None}
    waiting = deque([ENTRY])
    while waiting:
        node = waiting.popleft()
        if node in sinks:
            way: list[Node] = []
            step: Node | None = node
            while step is not None:
                way.append(step)
                step = before[step]
            return way[::-1]
        for callee in sorted(edges.get(node, ())):
            if callee not in before:
                before[callee] = node
                waiting.append(callee)
    return []


def engine_comparisons(modules: Mapping[str, Module]) -> list[str]:
    """Return `path:line: source` where code outside backends/ compares with an engine's name.

    Counted: `==`, `!=`, `in`, `not in` with a literal that holds a name, and `match` on one.
    """
    found = []
    for module in modules.values():
        if module.room == "backends":
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Compare):
                parts = [node.left, *node.comparators]
                flat = [e for part in parts for e in getattr(part, "elts", [part])]
                if any(_literal(one) in ENGINES for one in flat):
                    found.append(f"{module.path}:{node.lineno}: {ast.unparse(node)}")
            elif isinstance(node, ast.MatchValue) and _literal(node.value) in ENGINES:
                found.append(f"{module.path}:{node.lineno}: case {_literal(node.value)!r}")
    return found


def _literal(node: ast.expr) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def module_circles(modules: Mapping[str, Module], imports: Sequence[Import]) -> list[list[str]]:
    """Return groups of modules that import each other, lazily or not."""
    return circles(_by_importer(modules, imports))


def room_circles(imports: Sequence[Import]) -> list[list[str]]:
    """Return groups of rooms that import each other, lazily or not."""
    edges: dict[str, set[str]] = {}
    for one in imports:
        source, target = room_of(one.source), room_of(one.target)
        edges.setdefault(source, set())
        edges.setdefault(target, set())
        if source != target:
            edges[source].add(target)
    return circles(edges)


def imports_in_room_circles(imports: Sequence[Import]) -> dict[str, list[str]]:
    """Return {`room -> room`: imports} for the rooms of a circle: what to cut to open it."""
    found: dict[str, set[str]] = {}
    for circle in room_circles(imports):
        for one in imports:
            source, target = room_of(one.source), room_of(one.target)
            if source != target and source in circle and target in circle:
                found.setdefault(f"{source} -> {target}", set()).add(_arrow(one))
    return {pair: sorted(found[pair]) for pair in sorted(found)}


def upward_imports(imports: Sequence[Import]) -> list[str]:
    """Return `module -> module` (lazy ones marked) for imports of a higher floor, without lines."""
    found = set()
    for one in imports:
        source, target = FLOOR.get(room_of(one.source)), FLOOR.get(room_of(one.target))
        if source is not None and target is not None and target > source:
            found.add(_arrow(one))
    return sorted(found)


def _arrow(one: Import) -> str:
    return f"{one.source} -> {one.target}{' (lazy)' if one.lazy else ''}"


def room_of(module: str) -> str:
    """Return the room of a module by its dotted name, `tools` for what makes the tiny model."""
    if module == TOOLS or module.startswith(f"{TOOLS}."):
        return "tools"
    parts = module.split(".")
    room = parts[1] if len(parts) > 1 else parts[0]
    return ALIASES.get(room, room)


def line_counts(folder: Path) -> dict[str, int]:
    """Return the number of Python files, their lines, and those that are not blank."""
    texts = [path.read_text("utf-8") for path in sorted(folder.rglob("*.py"))]
    lines = [line for text in texts for line in text.splitlines()]
    return {
        "files": len(texts),
        "lines": len(lines),
        "not_blank": sum(bool(line.strip()) for line in lines),
    }


def _descending(sizes: Sequence[FunctionSize], key: str, above: int) -> list[FunctionSize]:
    listed = [size for size in sizes if getattr(size, key) > above]
    return sorted(listed, key=lambda size: (-getattr(size, key), size.where))


def _long(size: FunctionSize) -> dict[str, Any]:
    return {"where": size.where, "name": size.name, "lines": size.lines}


def _wide(size: FunctionSize) -> dict[str, Any]:
    return {"where": size.where, "name": size.name, "parameters": size.parameters}


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the table that the program prints."""
    path, words = found["path"], found["words"]
    longest, widest, most = (
        found[key] for key in ("longest_function", "widest_function", "most_imports")
    )
    rows = [
        ("modules in the import closure of the command", path["import_closure"]),
        ("modules reached by the calls of one run", len(path["reached"])),
        ("modules on the spine (job file -> adapter files)", len(path["spine"])),
        ("modules on the spine or called from it", len(path["beside"])),
        ("modules on the shortest way there", len(path["shortest"])),
        ("longest function, lines", f"{longest['lines']}  {longest['name']} {longest['where']}"),
        (f"functions over {LONG} lines", len(found["functions_over_60_lines"])),
        ("imports of own modules, at most", f"{most['imports']}  {most['module']}"),
        ("widest function", f"{widest['parameters']}  {widest['name']} {widest['where']}"),
        (f"functions over {WIDE} parameters", len(found["functions_over_7_parameters"])),
        ("comparisons with an engine's name", len(found["engine_comparisons"])),
        ("import circles between modules", len(found["module_circles"])),
        ("import circles between rooms", len(found["room_circles"])),
        ("upward imports", len(found["upward_imports"])),
        *((f"lines of {name}", counts["lines"]) for name, counts in found["lines"].items()),
        ("words to replace", sum(sum(files.values()) for files in words.values())),
    ]
    yield from (f"{name:<50} {value}" for name, value in rows)
    for key in (
        *("functions_over_60_lines", "functions_over_7_parameters", "engine_comparisons"),
        *("module_circles", "room_circles", "upward_imports"),
    ):
        if found[key]:
            yield f"\n{key.replace('_', ' ')}"
            yield from (f"  {_line(one)}" for one in found[key])
    if found["imports_in_room_circles"]:
        yield "\nimports in room circles"
    for pair, listed in found["imports_in_room_circles"].items():
        more = f" and {len(listed) - 1} more" if len(listed) > 1 else ""
        yield f"  {pair:<28} {listed[0]}{more}"
    yield "\nspine"
    yield from (f"  {name}" for name in path["spine"])
    yield "\nshortest way"
    yield from (f"  {name}" for name in path["shortest_calls"])
    yield "\nwords to replace, by word"
    for word, files in sorted(words.items(), key=lambda item: -sum(item[1].values())):
        top = sorted(files.items(), key=lambda item: -item[1])[:4]
        where = ", ".join(f"{name} {times}" for name, times in top)
        yield f"  {word:<24} {sum(files.values()):>5} in {len(files):>3} files: {where}"


def _line(one: object) -> str:
    if isinstance(one, dict):
        return f"{one.get('lines', one.get('parameters')):>4}  {one['name']}  {one['where']}"
    return " <-> ".join(one) if isinstance(one, list) else str(one)


def commit_of(root: Path) -> str | None:
    """Return the commit of a checkout, with `-dirty` where files differ; None without git."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or with `--json` every figure."""
    parser = argparse.ArgumentParser(description="Measure the structure of a tree.")
    parser.add_argument("--root", type=Path, default=ROOT, help="a checkout; default: this one")
    parser.add_argument("--json", action="store_true", help="print every figure as JSON")
    options = parser.parse_args(arguments)
    found = {"commit": commit_of(options.root), **measure(options.root)}
    text = json.dumps(found, indent=2) if options.json else "\n".join(table(found))
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
